"""The KV planner: decides which pages are in memory, on flash, or between the two (pure).

Theory of operation. A page is opened in a slot of memory, filled with tokens, and sealed. A sealed page never changes.
It stays in memory until the room is needed, and is written to flash before it leaves, early when memory is nearly full.
Attention holds the pages in memory (``HoldPages``) and fetches the others (``FetchPages``): they are read into the
ring, the part of memory that pages pass through. A page that is held, written or read keeps its slot. After its last
use a page of the ring leaves memory, unless there is room for it, or a kept page got less attention and gives way.
Pages are read ahead in the order of use, as far as the ring has room. The pages needed last are given up first.

No request waits for ever. A request without room is tried again after every event, the oldest first. It is refused when
no write and no holder could make room. A failed read is reported to every request for its pages.

=============  =========================  ========================================================================
event          steps of pages             what it changes
=============  =========================  ========================================================================
Open           new -> open                room may take others: kept -> absent, read -> absent
Seal           open -> kept               where memory is nearly full: nowhere -> queued
HoldPages                                 each page in memory gets one more use, and stays there
FetchPages     absent -> coming           each gets one more use; answered when all are read, or one failed
               read -> passing
ReadAhead      absent -> coming           as far as the ring has room
LetGo          passing -> kept            each has one use less; pages without a use stay or leave
               passing -> absent
Score                                     attention that pages got: the pages with the least leave first
AddRef, Drop   any -> freed               block tables with the page: without any, it goes after its last use
Reserve        kept -> absent             memory for other data; Unreserve gives it back
PagesRead      coming -> read             answers requests that fetched them: read -> passing
PagesWritten   writing -> stored          nowhere if it failed; the next write begins: queued -> writing
SetLimit       kept -> absent             how much memory may be used; pages beyond it leave
               read -> absent
Offer                                     a copy on the device, if it is worth the room; Lifted: it is there
Look, Looked                              uses of copies on the device; used copies stay there
Cancel                                    the request is forgotten, and its pages are let go
Close          queued -> nowhere          requests are refused; reads and writes under way still end
=============  =========================  ========================================================================

The tables ``MEMORY`` and ``FLASH`` (``books.py``) list the states of a page and all steps between them. ``evicting.py``
decides which page gives way to another.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from ..errors import BudgetTooSmall, Closed, FlashFull, PenstockError
from ..events import Cancel, Discard, Refuse
from ..units import format_size
from .books import PageBooks
from .events import (
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
    Request,
    Reserve,
    Score,
    Seal,
    SetLimit,
    Show,
    Unreserve,
    Wake,
    WritePages,
)
from .evicting import PageRoom
from .extents import EXTENT
from .incoming import unreadable
from .pages import InMemory, Page, runs

WRITE_EARLY = 3 / 4
"""Share of the memory for kept pages. Above it, pages are written to flash as soon as they are sealed."""

CLOSED = "this model was closed, and its KV with it; load it again"

_HERE: Final = frozenset[InMemory](("open", "kept", "passing"))


class KVPlanner:
    """Pages in ``capacity`` bytes of memory, and on flash up to ``flash_limit`` bytes (None: without bound)."""

    def __init__(self, capacity: int, flash_limit: int | None = None) -> None:
        self.books = PageBooks(capacity, flash_limit, self._discard)
        self.room = PageRoom(self.books)
        self.closed = False
        self._memory = self.books.memory
        self._waiting: dict[int, Open | FetchPages | Reserve] = {}  # for room
        self._fetches: dict[int, FetchPages] = {}  # hold their pages, and wait for reads
        self._actions: list[KVAction] = []

    def handle(self, event: KVEvent) -> list[KVAction]:
        """Take ``event`` in. Returns the actions to perform, in order."""
        self._actions = []
        if self.closed and isinstance(event, Request):
            self._do(Refuse(event.ticket, Closed(CLOSED)))
            return self._actions
        self._take(event)
        if not self.closed:
            failed = type(event) is PagesWritten and event.error is not None  # would only fail again
            if self._memory.held > self._memory.limit and not failed:
                self.room.retreat()
            while self._waiting and any(self._attempt(request) for request in (*self._waiting.values(),)):
                pass  # one request may have given back room that another needs
            if self.books.writes.queue and not self.books.writes.writing:
                self._write()
        return self._actions

    @property
    def most(self) -> int:
        """The most bytes of one read."""
        return min(EXTENT, self._memory.ring // 4)

    @property
    def is_idle(self) -> bool:
        """Whether no read or write is under way, and none is queued."""
        return not (self.books.incoming.reads or self.books.writes)

    def check_integrity(self) -> None:
        """Raises AssertionError if the books do not balance, or if a request holds pages that it should not hold."""
        self.books.check_integrity()
        assert not self._waiting.keys() & self._fetches.keys()
        assert all(page.leases for fetch in self._fetches.values() for page in fetch.pages)
        for fetch in self._fetches.values():
            assert any(page.memory == "coming" for page in fetch.pages), "it could have been answered"
        reserved = sum(each.size for each in self._waiting.values() if isinstance(each, Reserve))
        assert reserved <= self._memory.reserved
        assert not (self.closed and (self._waiting or self.books.writes.queue))

    # --- events -----------------------------------------------------------------------------------------------------

    def _take(self, event: KVEvent) -> None:
        match event:  # the most frequent events come first
            case HoldPages():
                here = [page for page in event.pages if page.memory in _HERE]
                self.books.lease(here)
                self._do(Wake(event.ticket, here))
            case LetGo():
                self._let_go(event.pages)
            case ReadAhead():
                self._do(Wake(event.ticket, event.pages[: self._read_ahead(event.pages)]))
            case FetchPages() | Open():
                self._ask(event)
            case PagesRead():
                self._landed(event)
            case Score():
                for page, score in zip(event.pages, event.scores, strict=True):
                    page.attention_score = score if event.anew else page.attention_score + score
            case Seal():
                self._seal(event.pages)
            case PagesWritten():
                self._written(event)
            case AddRef():
                for page in event.pages:
                    page.refs += 1
            case Drop():
                self._drop(event.pages)
            case Reserve():
                self._memory.reserve(event.size)
                self._ask(event)
            case Unreserve():
                self._memory.reserve(-event.size)
            case Look():
                self._do(Show(event.ticket, self.books.copies.look(event.keys)))
            case Looked():
                self.books.copies.looked(event.keys)
            case Offer():
                self._offer(event)
            case Lifted():
                self._lifted(event)
            case SetLimit():
                self._set_limit(event.size)
            case Cancel():
                self._cancel(event.ticket)
            case Close():
                self._close()

    def _seal(self, pages: Sequence[Page]) -> None:
        for page in pages:
            self.books.seal(page)
            if not self.closed and self._memory.kept_bytes > WRITE_EARLY * (self._memory.limit - self._memory.ring):
                with suppress(FlashFull):  # there is room in memory yet
                    self.room.store(page)

    def _drop(self, pages: Sequence[Page]) -> None:
        for page in pages:
            page.refs -= 1
            if not page.refs and not page.leases and page.memory != "coming":
                self.books.free(page)

    def _read_ahead(self, pages: Sequence[Page]) -> int:
        """Start to read the absent ones of ``pages``. Returns how many of ``pages`` need not be asked for again."""
        if not any(page.memory == "absent" for page in pages):
            return len(pages)
        done = 0
        for run in runs(pages, self.most):
            wanted = [page for page in run if page.memory == "absent" and page.refs]
            if wanted and not self._start(wanted):
                break
            done += len(run)
        return done

    def _landed(self, event: PagesRead) -> None:
        for page in self.books.land(event.read, event.error):
            if not page.refs and not page.leases:
                self.books.free(page)
        for fetch in (*self._fetches.values(),):
            self._finish(fetch)

    def _written(self, event: PagesWritten) -> None:
        for page in self.books.end_write(event.write, failed=event.error is not None):
            if not page.refs and not page.leases:
                self.books.free(page)
        self.room.trouble = event.error

    def _offer(self, event: Offer) -> None:
        pages = event.keys, event.values
        if self.closed or any(page.memory not in _HERE for page in pages):
            return  # a page has left memory already: only flash has it
        if (pair := self.books.copies.give_room(*pages, newer=event.newer)) is not None:
            self.books.lease(pages)
            self._do(Lift(pair))

    def _lifted(self, event: Lifted) -> None:
        if event.failed:  # attention uses them in host memory
            self.books.copies.forget(event.keys)
        else:
            self.books.copies.landed(event.keys)
        self._let_go((event.keys, event.values))

    def _set_limit(self, size: int) -> None:
        if self.closed:
            return
        self._actions += [Discard(*span) for span in self._memory.resize(size)]
        while any(page.memory == "read" and self._memory.is_beyond(page) for page in self.books.incoming):
            if not self.room.give_up_one():
                break

    def _cancel(self, ticket: int) -> None:
        if (request := self._waiting.pop(ticket, None)) is not None:
            self._forget(request)
        elif (fetch := self._fetches.pop(ticket, None)) is not None:
            self._let_go(fetch.pages)

    def _close(self) -> None:
        self.closed = True
        for request in self._waiting.values():
            self._forget(request)
            self._do(Refuse(request.ticket, Closed(CLOSED)))
        self._waiting.clear()
        self.books.withdraw()

    # --- requests ---------------------------------------------------------------------------------------------------

    def _ask(self, request: Open | FetchPages | Reserve) -> None:
        if self._waiting or not self._attempt(request):
            self._waiting[request.ticket] = request  # behind the requests that have waited longer

    def _attempt(self, request: Open | FetchPages | Reserve) -> bool:
        """Give ``request`` room, if there is any, or refuse it. Returns whether it has stopped waiting for room."""
        try:
            match request:
                case Open():
                    found = self._open(request)
                case FetchPages():
                    found = self._fetch(request)
                case Reserve():
                    found = self._reserve(request)
        except PenstockError as error:
            self._forget(request)
            self._do(Refuse(request.ticket, error))
            found = True
        if found and self._waiting:
            self._waiting.pop(request.ticket, None)
        return found

    def _forget(self, request: Open | FetchPages | Reserve) -> None:
        """Undo what ``request`` reserved: it stops waiting without room."""
        if isinstance(request, Reserve):
            self._memory.reserve(-request.size)

    def _open(self, request: Open) -> bool:
        """Returns whether there is a slot. Raises BudgetTooSmall, and the error of a write that was to make room."""
        while not self.books.open(request.page):
            if self.room.evict_one() or self.room.give_up_one():
                continue
            stuck = self.room.is_stuck()
            if not self.books.writes and self.books.open(request.page, beyond=True):
                break  # a page that fits the whole budget neither fails at a limit nor waits for holders
            if stuck:
                raise BudgetTooSmall(
                    f"[kv] host of {format_size(self._memory.capacity)} is too little for the newest tokens of all "
                    "layers and sequences at once; raise it, or compute fewer sequences at a time"
                )
            return False
        self._do(Wake(request.ticket, (request.page,)))
        return True

    def _fetch(self, request: FetchPages) -> bool:
        """Returns whether the absent pages have room. Raises as ``_open``."""
        while absent := [page for page in request.pages if page.slot is None]:
            if self._start(absent):
                break
            if not self.room.make_room_to_pass(sum(page.size for page in absent)):
                return False
        self.books.lease(request.pages)  # now, so that they are not given up
        self._fetches[request.ticket] = request
        self._finish(request)
        return True

    def _finish(self, fetch: FetchPages) -> None:
        """Answer ``fetch`` if no page of it is still coming."""
        if any(page.memory == "coming" for page in fetch.pages):
            return
        del self._fetches[fetch.ticket]
        known = self.books.incoming.problems
        problems = [known[page] for page in fetch.pages if page in known] if known else []
        wrong = bool(problems) or self.closed
        # Other requests for the pages that failed must still hear of it.
        self.books.use([page for page in fetch.pages if page.memory == "read" and not (wrong and page.leases > 1)])
        if not wrong:
            self._do(Wake(fetch.ticket, fetch.pages))
            return
        self._let_go(fetch.pages, right=False)
        self._do(Refuse(fetch.ticket, Closed(CLOSED) if self.closed else unreadable(problems[0])))

    def _reserve(self, request: Reserve) -> bool:
        """Returns whether pages leave enough memory. Raises as ``_open``."""
        while self._memory.lacking > 0:
            if self.room.evict_one():
                continue
            if not self.room.is_stuck():
                return False
            if not self._memory.is_short:
                break  # the limit is short, not the budget
            raise BudgetTooSmall(
                f"[kv] host of {format_size(self._memory.capacity)} has no room for what sums up the keys of "
                'this context; raise it, or take [kv] attention = "exact"'
            )
        self._do(Wake(request.ticket, ()))
        return True

    # --- uses of pages ----------------------------------------------------------------------------------------------

    def _let_go(self, pages: Sequence[Page], *, right: bool = True) -> None:
        """End one use of each of ``pages``. ``right``: their bytes are right, and may be kept."""
        self.books.held -= len(pages)
        for page in pages:
            page.leases -= 1
            if page.leases:
                continue
            if page.memory == "passing" and not (right and page.refs and not self.closed and self.room.keep(page)):
                self.books.leave(page)
            if not page.refs and page.memory != "coming":
                self.books.free(page)

    # --- actions ----------------------------------------------------------------------------------------------------

    def _start(self, pages: Sequence[Page]) -> bool:
        """Start to read ``pages``, neighbours on flash or not. Returns whether there was room for all of them."""
        if not self._memory.place_passing(pages):
            return False
        for number, run in self.books.start(pages, self.most):
            assert run[0].place is not None
            self._do(ReadPages(number, run[0].place, run))
        return True

    def _write(self) -> None:
        pages = self.books.begin_write()
        assert pages[0].place is not None
        self._do(WritePages(self.books.writes.number, pages[0].place, pages, self.books.places.length))

    def _discard(self, offset: int, length: int) -> None:
        if not self.closed:
            self._do(Discard(offset, length))

    def _do(self, action: KVAction) -> None:
        self._actions.append(action)
