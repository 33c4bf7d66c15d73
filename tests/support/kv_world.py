"""A world around the KV planner: clients, a drive and a device that do what it says, and a ledger of bytes.

The ledger knows in the most simple way which bytes lie where. It checks every action, and after every event what must
always hold.
"""

import errno
from collections import Counter
from collections.abc import Sequence

from penstock.tiering.errors import FlashFull
from penstock.tiering.events import Cancel, Discard, Refuse
from penstock.tiering.kv.device_pages import DevicePages, Pair
from penstock.tiering.kv.events import (
    AddRef,
    Close,
    Drop,
    FetchPages,
    HoldPages,
    KVAction,
    KVEvent,
    LetGo,
    Lift,
    Lifted,
    Look,
    Looked,
    Offer,
    Open,
    PagesRead,
    PagesWritten,
    ReadAhead,
    ReadPages,
    Reserve,
    Score,
    Seal,
    SetLimit,
    Show,
    Unreserve,
    Wake,
    WritePages,
)
from penstock.tiering.kv.pages import Page
from penstock.tiering.kv.planner import KVPlanner
from penstock.tiering.units import PAGE

TRACKS = 3


class KVWorld:
    """Clients choose by number what they do: any number will do."""

    def __init__(
        self, pages: int = 16, *, flash: int | None = None, device: int = 0, planner: KVPlanner | None = None
    ) -> None:
        """Memory for ``pages`` pages, as many of ``flash`` and of the ``device``."""
        self.planner = planner or KVPlanner(pages * PAGE, flash)
        if device:
            self.planner.books.copies = DevicePages(device * PAGE)
        self.capacity = self.limit = self.planner.books.memory.capacity
        self.ring = self.planner.books.memory.ring
        self.tracks: list[list[Page]] = [[] for _ in range(TRACKS)]
        self.opening: dict[int, Page] = {}  # by ticket
        self.holding: dict[int, list[Page]] = {}
        self.fetching: dict[int, tuple[Page, ...]] = {}
        self.shared: list[list[Page]] = []
        self.reserving: dict[int, int] = {}
        self.held: list[Sequence[Page]] = []
        self.looks: list[list[Page]] = []
        self.reserved = 0
        self.refs: Counter[Page] = Counter()
        self.reads: dict[int, ReadPages] = {}
        self.write: WritePages | None = None
        self.lifts: list[Pair] = []
        self.up: set[Page] = set()
        self.unasked: set[Page] = set()  # read, and nobody has got them
        self.ram: dict[int, tuple[Page, int]] = {}  # by slot, whose bytes lie there, and how many
        self.flash: dict[int, Page] = {}  # by place
        self.closed = False
        self._ticket = 0
        self._answer: Wake | Show | Refuse | None = None

    # --- clients ----------------------------------------------------------------------------------------------------

    def open(self, track: int, size: int = 1) -> None:
        """The next page of a track, if the one before is full."""
        pages = self.tracks[track % TRACKS]
        number = track % TRACKS
        if (pages and not pages[-1].sealed) or any(page.track == number for page in self.opening.values()):
            return
        page = Page(PAGE * (1 + size % 2), None, number, pages[-1].index + 1 if pages else 0)
        self._ticket += 1
        self.opening[self._ticket] = page
        self.post(Open(self._ticket, page))

    def seal(self, offer: bool) -> None:
        """Whatever is open is full; pages of the first two tracks are keys and values."""
        pages = [track[-1] for track in self.tracks if track and not track[-1].sealed]
        self.post(Seal(pages))
        keys, values = self.tracks[0], self.tracks[1]
        if offer and keys and values and keys[-1] in pages and values[-1] in pages:
            self.post(Offer(keys[-1], values[-1], 0))

    def hold(self, first: int, count: int) -> None:
        pages = self._some(first, count)
        wanted = [page for page in pages if page.slot is not None and page not in self.unasked]
        wanted = [page for page in wanted if not self._is_coming(page)]
        self._ticket += 1
        self.holding[self._ticket] = wanted
        self.post(HoldPages(self._ticket, pages))
        assert not self.holding, "not answered at once"

    def fetch(self, first: int, count: int) -> None:
        pages = tuple(page for page in self._some(first, count) if page.sealed)
        if pages:
            self._ticket += 1
            self.fetching[self._ticket] = pages
            self.post(FetchPages(self._ticket, pages))

    def read_ahead(self, first: int, count: int) -> None:
        self._ticket += 1
        pages = self._some(first, count)
        answer = self._now(ReadAhead(self._ticket, pages))
        assert isinstance(answer, Wake)
        assert list(answer.pages) == pages[: len(answer.pages)]
        assert all(page.slot is not None for page in answer.pages), "neither in memory nor on its way"

    def let_go(self, which: int) -> None:
        if self.held:
            self.post(LetGo(self.held.pop(which % len(self.held))))

    def add_ref(self, first: int, count: int) -> None:
        pages = self._some(first, count)
        self.refs.update(pages)
        self.shared.append(pages)
        self.post(AddRef(pages))

    def drop(self, first: int, count: int, *, shared: bool) -> None:
        """A track loses its last pages, or some that were shared are dropped."""
        if shared and self.shared:
            return self._drop(self.shared.pop(first % len(self.shared)))
        number = first % TRACKS
        if any(page.track == number for page in self.opening.values()):
            return None
        stay = max(0, len(self.tracks[number]) - count % 5) if count % 4 else 0
        gone, self.tracks[number] = self.tracks[number][stay:], self.tracks[number][:stay]
        return self._drop(gone)

    def _drop(self, pages: Sequence[Page]) -> None:
        self.refs.subtract(pages)
        self.post(Drop(pages))

    def score(self, first: int, count: int, *, anew: bool) -> None:
        pages = self._some(first, count)
        self.post(Score(pages, [float(number % 7) for number in range(first, first + len(pages))], anew))

    def reserve(self, size: int) -> None:
        self._ticket += 1
        self.reserving[self._ticket] = (1 + size % 6) * PAGE
        self.post(Reserve(self._ticket, self.reserving[self._ticket]))

    def unreserve(self) -> None:
        if self.reserved:
            size, self.reserved = self.reserved, 0
            self.post(Unreserve(size))

    def look(self, track: int) -> None:
        self._ticket += 1
        keys = self.tracks[0]
        answer = self._now(Look(self._ticket, keys))
        assert isinstance(answer, Show)
        assert {pair.keys for pair in answer.pairs} <= self.up, "shows what has not been copied"
        self.looks.append([pair.keys for pair in answer.pairs])

    def looked(self) -> None:
        if self.looks:
            self.post(Looked(self.looks.pop(0)))

    def cancel(self, which: int) -> None:
        if tickets := self._waiting:
            ticket = tickets[which % len(tickets)]
            for waiting in (self.opening, self.fetching, self.reserving):
                waiting.pop(ticket, None)  # type: ignore[attr-defined]
            self.post(Cancel(ticket))

    # --- the machine ------------------------------------------------------------------------------------------------

    def set_limit(self, sixteenths: int) -> None:
        self.limit = self.capacity * (8 + sixteenths % 9) // 16 // PAGE * PAGE
        self.post(SetLimit(self.limit))

    def close(self) -> None:
        """From now on everything is refused."""
        self.closed = True
        self.post(Close())
        assert not self.opening
        assert not self.reserving

    def end_read(self, which: int, *, fails: bool = False) -> None:
        if not self.reads:
            return
        read = self.reads.pop([*self.reads][which % len(self.reads)])
        for page in read.pages:
            assert page.slot is not None
            place = page.place
            assert place is not None
            assert self.flash.get(place) is page, "read from where something else was written"
            if not fails:
                self._fill(page)
        self.unasked.update(read.pages)
        self.post(PagesRead(read.read, OSError(errno.EIO, "injected") if fails else None))

    def end_write(self, *, fails: bool = False) -> None:
        if self.write is None:
            return
        write, self.write = self.write, None
        if not fails:
            self._check_bytes(write.pages)
            self.flash.update({page.place: page for page in write.pages if page.place is not None})
        self.post(PagesWritten(write.write, FlashFull("injected") if fails else None))

    def end_lift(self, *, fails: bool = False) -> None:
        if self.lifts:
            pair = self.lifts.pop(0)
            if not fails and not pair.gone:
                self.up.update(pair.pages)
            self.post(Lifted(*pair.pages, failed=fails))

    def end(self) -> None:
        """Everybody gets what is asked for, and gives all back."""
        while self.reads or self.write or self.lifts or self.held or self.looks:
            self.end_read(0)
            self.end_write()
            self.end_lift()
            self.let_go(0)
            self.looked()
        assert not self._waiting, "somebody waits for ever"
        self.unreserve()
        for pages in (*self.tracks, *self.shared):
            self._drop(pages)
        while self.reads or self.write:
            self.end_read(0)
            self.end_write()
        books = self.planner.books
        assert (books.memory.used, books.places.used, books.copies.used, books.held) == (0, 0, 0, 0)
        assert not books.pages

    # --- the ledger -------------------------------------------------------------------------------------------------

    def post(self, event: KVEvent) -> None:
        """Hand ``event`` to the planner, do what it says, and look whether that may be."""
        for action in self.planner.handle(event):
            self._perform(action)
        self.check()

    def _now(self, event: ReadAhead | Look) -> Wake | Show | Refuse:
        self._answer = None
        self.post(event)
        assert self._answer is not None, "not answered at once"
        assert self._answer.ticket == event.ticket
        return self._answer

    def _perform(self, action: KVAction) -> None:
        match action:
            case Wake() | Refuse() | Show():
                self._answered(action)
            case ReadPages():
                self._begin_read(action)
            case WritePages():
                assert self.write is None, "two writes at a time"
                self.write = action
                self._check_bytes(action.pages)
                for number, page in enumerate(action.pages):
                    assert page.place == action.place + sum(other.size for other in action.pages[:number])
                    assert page.place + page.size <= action.length
                    assert page.sealed, "written before it is full"
                    others = (each.place for each in self._coming())
                    assert page.place not in others, "written where something is read from"
            case Lift(pair):
                assert all(page.leases for page in pair.pages), "copied without being held"
                self.lifts.append(pair)
            case Discard(offset, length):
                for slot, (page, size) in [*self.ram.items()]:
                    if slot < offset + length and offset < slot + size:
                        assert page.slot != slot, "memory of a page that is there was given back"
                        del self.ram[slot]

    def _begin_read(self, read: ReadPages) -> None:
        place = read.place
        for page in read.pages:
            assert page.place == place, "not one after the other on flash"
            assert self.flash.get(place) is page, "read before it was written"
            assert not any(page in other.pages for other in self.reads.values()), "read twice"
            place += page.size
        self.reads[read.read] = read
        unasked = [page for page in self.unasked if page.memory == "read"]  # others were given up
        coming = sum(page.size for page in (*self._coming(), *unasked))
        assert coming <= self.ring, "more passes than the ring has room for"

    def _answered(self, action: Wake | Refuse | Show) -> None:
        ticket = action.ticket
        if ticket in self.opening:
            page = self.opening.pop(ticket)
            if isinstance(action, Wake):
                assert list(action.pages) == [page]
                self.tracks[page.track].append(page)
                self.refs[page] += 1
                self._fill(page)
        elif ticket in self.holding:
            assert isinstance(action, Wake)
            assert list(action.pages) == self.holding.pop(ticket), "held something else than what is in memory"
            self.held.append(action.pages)
            self._check_bytes(action.pages)
        elif ticket in self.fetching:
            pages = self.fetching.pop(ticket)
            if isinstance(action, Wake):
                assert tuple(action.pages) == pages
                self.held.append(pages)
                self.unasked.difference_update(pages)
                self._check_bytes(pages)
        elif ticket in self.reserving:
            size = self.reserving.pop(ticket)
            self.reserved += size * isinstance(action, Wake)
        else:
            assert self._answer is None, "answered twice, or nobody asked"
            self._answer = action

    def check(self) -> None:
        """What must always hold."""
        books = self.planner.books
        self.planner.check_integrity()
        for pages in self.held:
            self._check_bytes(pages)
        coming = self._coming()
        listed = {page for page, refs in self.refs.items() if refs > 0}
        assert {page for page in books.pages if page.refs} == listed, "freed too early, or too late"
        self.refs = +self.refs
        assert all(page.refs == refs for page, refs in self.refs.items())
        self.unasked = {page for page in self.unasked if page.memory == "read"}
        self.up &= {page for page in books.pages if page.up}
        for page in books.pages:
            assert page.slot is not None or self.flash.get(page.place or 0) is page, "its bytes are lost"
            if page.memory == "kept" and page.stored and not page.leases and not self.closed:
                assert not books.memory.is_beyond(page), "could have left the memory beyond the limit"
        uses = sum(map(len, self.held)) + sum(map(len, self.fetching.values())) + 2 * len(self.lifts)
        waiting = sum(map(len, self.fetching.values()))  # some of them have their pages, others not yet
        assert uses - waiting <= books.held <= uses, "leases that nobody has"
        assert books.memory.reserved == self.reserved + sum(self.reserving.values()), "reserved by nobody"
        if not (self.reads or self.write or self.held or self.lifts):
            assert not self._waiting, "somebody waits, and nothing is under way"
        if not self.closed:
            assert self.write is not None or not books.writes.queue, "the drive could write"
        used = [(page.slot, page.slot + page.size) for page in books.pages if page.slot is not None]
        for slot, (_, size) in self.ram.items():
            if slot + size > self.limit and not self.closed:
                in_use = any(start < slot + size and slot < end for start, end in used)
                assert in_use, "memory beyond the limit that nobody uses was not given back"
        assert len(coming) == len({*coming})

    def _check_bytes(self, pages: Sequence[Page]) -> None:
        for page in pages:
            assert page.slot is not None, "left memory while it was used"
            assert self.ram.get(page.slot, (None, 0))[0] is page, "other bytes lie in its slot"

    def _fill(self, page: Page) -> None:
        """The bytes of ``page`` lie in its slot, and whatever overlaps it is no more."""
        assert page.slot is not None
        start, end = page.slot, page.slot + page.size
        for slot, (other, size) in [*self.ram.items()]:
            if slot < end and start < slot + size:
                assert other is page or other.slot != slot, "two pages in one place"
                del self.ram[slot]
        self.ram[page.slot] = (page, page.size)

    @property
    def _waiting(self) -> list[int]:
        """Tickets that are not answered."""
        return [*self.opening, *self.fetching, *self.reserving]

    def _coming(self) -> list[Page]:
        return [page for read in self.reads.values() for page in read.pages]

    def _is_coming(self, page: Page) -> bool:
        return any(page in read.pages for read in self.reads.values())

    def _some(self, first: int, count: int) -> list[Page]:
        """Some pages of a track, one after the other."""
        pages = self.tracks[first % TRACKS]
        start = first // TRACKS % (len(pages) or 1)
        return pages[start : start + 1 + count % 6]
