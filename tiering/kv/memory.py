"""The slots of KV pages in memory, and the order in which kept pages would leave (pure). evicting.py makes them leave.

Every token looks at all pages of all layers in the same order, a cycle. Of a cycle, what was used last will be needed
last: pages leave newest first, from the track that has most in memory, and those that stay are spread evenly. Where
attention chooses its pages, those that got least of it leave first. A part of the memory, the ring, is left to pages on
their way through.

Under memory pressure a limit below the capacity holds: pages that lie beyond it leave, and new ones are put there only
to pass through, or where nothing else can make room.
"""

from collections.abc import Collection, Iterator, Sequence

from ..planner.freelist import FreeList
from ..units import PAGE
from .pages import Page

RING = 1 / 4
"""Share of the memory that pages pass through."""


class PageMemory:
    """Slots in ``capacity`` bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = self.limit = capacity // PAGE * PAGE
        self.ring = self._whole_ring = _ring(self.capacity)
        """Bytes for pages passing through, below the limit."""
        self.held = 0
        """Bytes, from the beginning, that may be in memory: used once, and not given back."""
        self._free = FreeList(0, self.capacity)
        self.passing_bytes = 0
        self.reserved = 0
        """Bytes taken for something else."""
        self._kept: dict[int, list[Page]] = {}  # by track: sealed pages in memory, oldest first
        self._bytes: dict[int, int] = {}
        self._beyond: set[Page] = set()

    @property
    def room(self) -> int:
        """Bytes for pages that stay, where no limit is below the capacity."""
        return self.capacity - self._whole_ring

    @property
    def used(self) -> int:
        return self.capacity - self._free.free_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of sealed pages that stay until they are chosen to leave."""
        return sum(self._bytes.values())

    def place(self, page: Page, *, passing: bool, beyond: bool = False) -> bool:
        """Give ``page`` a slot; whether there is one. Pages ``passing`` through have the ring, the others the rest, up
        to the limit, or ``beyond`` it."""
        if passing:
            if self.passing_bytes + page.size > self.ring:
                return False
        elif (self._lacking_beyond if beyond else self.lacking) + page.size > 0:
            return False
        page.slot = self._free.allocate(page.size, below=self.limit)
        if page.slot is None and (passing or beyond):
            page.slot = self._free.allocate(page.size)
        if page.slot is None:
            return False
        self.held = max(self.held, page.slot + page.size)
        self.passing_bytes += page.size * passing
        return True

    def place_passing(self, pages: Sequence[Page]) -> bool:
        """Give all of ``pages`` slots to pass through, or none of them; whether there was room."""
        for done, page in enumerate(pages):
            if not self.place(page, passing=True):
                for other in pages[:done]:
                    self._give_back(other, passing=True)
                return False
        return True

    def vacate(self, page: Page) -> None:
        """Take the slot of ``page``, which nobody uses, away."""
        assert not page.leases
        self._give_back(page, passing=page.passing)

    def _give_back(self, page: Page, *, passing: bool) -> None:
        assert page.slot is not None
        self._free.release(page.slot, page.size)
        self.passing_bytes -= page.size * passing
        page.slot = None
        if self.held > self.limit:
            self.held = min(self.held, max(self.limit, self._end))

    def keep(self, page: Page) -> None:
        """``page`` is sealed and in memory; it stays until it is a victim, or dropped."""
        self._kept.setdefault(page.track, []).append(page)
        self._bytes[page.track] = self._bytes.get(page.track, 0) + page.size
        if self.is_beyond(page):
            self._beyond.add(page)

    def forget(self, page: Page) -> None:
        """``page`` is not kept any more, if it was."""
        self._beyond.discard(page)
        kept = self._kept.get(page.track, [])
        for at in range(len(kept) - 1, -1, -1):  # it is mostly near the end
            if kept[at] is page:
                del kept[at]
                self._bytes[page.track] -= page.size
                break
        if not kept:
            self._kept.pop(page.track, None)
            self._bytes.pop(page.track, None)

    def victims(self) -> Iterator[Page]:
        """Kept pages, best victim first; sought only as far as they are looked at."""
        for number in sorted(self._bytes, key=lambda number: (-self._bytes[number], number)):
            kept = sorted(self._kept[number], key=lambda page: (page.attention_score, -page.index))
            yield from (page for page in kept if page.evictable)

    def may_stay(self, page: Page, tracks: int) -> bool:
        """Whether there is room for ``page``, which is passing, to be kept: its track has less than a fair share, one
        of ``tracks``."""
        fair = (self.limit - self.ring - self.reserved) // max(1, tracks)
        has_less = self._bytes.get(page.track, 0) + page.size <= fair
        return has_less and self.lacking + page.size <= 0 and not self.is_beyond(page)

    def settle(self, page: Page) -> None:
        """``page``, which was passing, is kept in its slot from now on."""
        self.passing_bytes -= page.size
        self.keep(page)

    def is_beyond(self, page: Page) -> bool:
        """Whether ``page`` lies beyond the limit."""
        return page.slot is not None and page.slot + page.size > self.limit

    def beyond(self) -> list[Page]:
        """Kept pages that are to leave, as they lie beyond the limit."""
        return [page for page in self._beyond if page.evictable]

    def resize(self, limit: int) -> list[tuple[int, int]]:
        """Have ``limit`` bytes of the capacity used from now on. The free spans beyond, (offset, length), which need no
        memory any more."""
        self.limit = limit // PAGE * PAGE
        self.ring = _ring(self.limit)
        self._beyond = {page for kept in self._kept.values() for page in kept if self.is_beyond(page)}
        self.held = min(self.held, max(self.limit, self._end))
        spans = ((max(at, self.limit), at + length) for at, length in self._free.holes())
        return [(start, end - start) for start, end in spans if start < end]

    def colder(self, page: Page) -> Page | None:
        """What ``page``, which is passing, can take the place of: a page that got less attention, of its track or else
        of the one that has most in memory; the coldest."""
        if (found := self._coldest(page.track, page)) is not None or not self._bytes:
            return found
        most = max(self._bytes, key=lambda number: (self._bytes[number], -number))
        return self._coldest(most, page) if self._bytes[most] > self._bytes.get(page.track, 0) else None

    def _coldest(self, track: int, page: Page) -> Page | None:
        """Of ``track``, if that is colder than ``page`` and not smaller."""
        coldest = min(
            (other for other in self._kept.get(track, ()) if other.evictable),
            key=lambda other: other.attention_score,
            default=None,
        )
        return (
            coldest
            if coldest is not None and coldest.attention_score < page.attention_score and coldest.size >= page.size
            else None
        )

    def reserve(self, size: int) -> None:
        """Take ``size`` bytes for what is not in pages; a negative number gives them back."""
        self.reserved += size

    def check_integrity(self, pages: Collection[Page]) -> None:
        """Raises AssertionError where the books do not agree with ``pages``, all that there are."""
        here = sorted((page for page in pages if page.slot is not None), key=lambda page: page.slot or 0)
        end = 0
        for page in here:
            assert page.slot is not None
            assert page.slot >= end, "slots overlap"
            end = page.slot + page.size
        assert end <= self.capacity
        assert sum(page.size for page in here) == self.used
        assert sum(page.size for page in here if page.passing) == self.passing_bytes <= self._whole_ring
        kept = [page for track in self._kept.values() for page in track]
        assert len(set(kept)) == len(kept)
        assert set(kept) == {page for page in here if page.memory == "kept"}
        assert sum(page.size for page in kept) == self.kept_bytes
        assert {page for page in kept if self.is_beyond(page)} == self._beyond
        assert end <= self.held <= self.capacity

    @property
    def lacking(self) -> int:
        """Bytes that pages take beyond what they may, those passing left aside; below 0, what they may take yet."""
        return self.used - self.passing_bytes - self.limit + self.ring + self.reserved

    @property
    def is_short(self) -> bool:
        """Whether pages take more than they could without a limit."""
        return self._lacking_beyond > 0

    @property
    def _end(self) -> int:
        """Where the last page ends."""
        holes = self._free.holes()
        return holes[-1][0] if holes and sum(holes[-1]) == self.capacity else self.capacity

    @property
    def _lacking_beyond(self) -> int:
        """The same without a limit."""
        return self.used - self.passing_bytes - self.capacity + self._whole_ring + self.reserved


def _ring(limit: int) -> int:
    return int(limit * RING) // PAGE * PAGE
