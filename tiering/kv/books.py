"""The books on pages of KV (pure): their states, the steps between them, and the accounts that must balance.

``MEMORY`` and ``FLASH`` are the states of a page, with the steps that lead from each to the next. No other step is
possible: to try one is a bug and raises AssertionError. The planner decides which steps are taken, and when.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from .device_pages import DevicePages
from .extents import Places
from .incoming import Incoming
from .memory import RING, PageMemory
from .pages import InMemory, OnFlash, Page, runs
from .writes import Writes

MEMORY: Final[Mapping[InMemory, Mapping[str, InMemory]]] = {
    "new": {"open": "open"},  # has no slot yet
    "open": {"seal": "kept", "free": "freed"},  # tokens are added to it
    "kept": {"evict": "absent", "free": "freed"},  # sealed, and in memory until it is chosen to leave
    "absent": {"read": "coming", "free": "freed"},  # on flash alone
    "coming": {"land": "read"},  # a read fills its slot in the ring, so it cannot be freed
    "read": {"use": "passing", "give up": "absent", "free": "freed"},  # in the ring; no request has got it yet
    "passing": {"stay": "kept", "leave": "absent", "free": "freed"},  # in the ring, and held
    "freed": {},  # in no block table, and unused
}
"""For each state of a page in host memory: the steps it can take, and the state that each step leads to."""

FLASH: Final[Mapping[OnFlash, Mapping[str, OnFlash]]] = {
    "nowhere": {"queue": "queued"},  # has no place in the file
    "queued": {"write": "writing", "withdraw": "nowhere"},  # has a place, and waits for its turn
    "writing": {"finish": "stored", "fail": "nowhere"},  # its bytes are taken from its slot
    "stored": {"free": "nowhere"},  # its bytes are at its place
}
"""The same for its bytes on flash. Only a stored page leaves memory."""


class PageBooks:
    """Pages in ``capacity`` bytes of memory, and in a file of up to ``flash_limit`` bytes (None: without bound).

    ``discard(offset, length)``, in bytes, is called for memory beyond the limit when its page has left.
    """

    def __init__(self, capacity: int, flash_limit: int | None, discard: Callable[[int, int], None]) -> None:
        self.memory, self.places = PageMemory(capacity), Places(flash_limit)
        self.pages: set[Page] = set()
        """All pages that are not new or freed."""
        self.incoming, self.writes = Incoming(), Writes()
        self.copies = DevicePages(0)
        """Copies on a device. Without a device it has no room."""
        self.held = 0
        """Uses of pages by attention and by copies to the device, without writes."""
        self.tracks: Counter[int] = Counter()
        """Bytes of all ``pages``, in memory or not, by block table."""
        self._discard = discard

    @property
    def wanted(self) -> int:
        """Bytes of memory that would hold all ``pages``, rounded up to sixteenths of the capacity."""
        capacity = self.memory.capacity
        least = self.tracks.total() / (1 - RING) + self.memory.reserved
        return -(-int(least) * 16 // capacity) * capacity // 16

    # --- pages that stay --------------------------------------------------------------------------------------------

    def open(self, page: Page, *, beyond: bool = False) -> bool:
        """new -> open, if there is a slot. Returns whether there is. ``beyond``: slots beyond the limit count too."""
        if not self.memory.place(page, passing=False, beyond=beyond):
            return False
        _move((page,), "open")
        self.pages.add(page)
        self.tracks[page.track] += page.size
        return True

    def seal(self, page: Page) -> None:
        """open -> kept."""
        _move((page,), "seal")
        self.memory.keep(page)

    def evict(self, page: Page) -> None:
        """kept -> absent."""
        assert page.stored
        self.memory.forget(page)
        self._vacate(page)
        _move((page,), "evict")

    def free(self, page: Page) -> None:
        """Any state -> freed, for a page that no block table has and nobody uses."""
        assert not page.refs
        self.copies.forget(page)
        if page.memory == "read":
            self.incoming.forget((page,))
        if page.slot is not None:
            self.memory.forget(page)
            self._vacate(page)
        _move((page,), "free")
        if page.place is not None:
            self._release_place(page)
            _move_on_flash((page,), "free")
        self.pages.remove(page)
        self.tracks[page.track] -= page.size
        if not self.tracks[page.track]:
            del self.tracks[page.track]

    # --- pages that pass --------------------------------------------------------------------------------------------

    def start(self, pages: Sequence[Page], most: int) -> Iterator[tuple[int, list[Page]]]:
        """absent -> coming, for all ``pages``, which have slots already. Yields the number and the pages of each
        read, of ``most`` bytes at most."""
        for run in runs(pages, most):
            _move(run, "read")
            yield self.incoming.begin(run), run

    def land(self, read: int, error: Exception | None) -> Sequence[Page]:
        """coming -> read, for the pages of read number ``read``. Returns these pages."""
        pages = self.incoming.end(read, error)
        _move(pages, "land")
        return pages

    def use(self, pages: Sequence[Page]) -> None:
        """read -> passing, for all ``pages``."""
        self.incoming.forget(pages)
        _move(pages, "use")

    def give_up(self, page: Page) -> None:
        """read -> absent."""
        self.incoming.forget((page,))
        self._vacate(page)
        _move((page,), "give up")

    def settle(self, page: Page) -> None:
        """passing -> kept."""
        self.memory.settle(page)
        _move((page,), "stay")

    def leave(self, page: Page) -> None:
        """passing -> absent."""
        self._vacate(page)
        _move((page,), "leave")

    # --- uses -------------------------------------------------------------------------------------------------------

    def lease(self, pages: Sequence[Page]) -> None:
        """Add one use to each of ``pages``."""
        self.held += len(pages)
        for page in pages:
            page.leases += 1

    # --- flash ------------------------------------------------------------------------------------------------------

    def queue(self, page: Page) -> None:
        """nowhere -> queued. Raises FlashFull."""
        page.place = self.places.take(page)
        _move_on_flash((page,), "queue")
        page.leases += 1
        self.writes.queue.append(page)

    def begin_write(self) -> Sequence[Page]:
        """queued -> writing, for the first pages in the queue. Returns them."""
        pages = self.writes.begin()
        _move_on_flash(pages, "write")
        return pages

    def end_write(self, write: int, *, failed: bool) -> Sequence[Page]:
        """writing -> stored, or nowhere if it ``failed``, for the pages of write ``write``. Returns these pages."""
        pages = self.writes.end(write)
        for page in pages:
            page.leases -= 1
            if failed:
                self._release_place(page)
        _move_on_flash(pages, "fail" if failed else "finish")
        return pages

    def withdraw(self) -> None:
        """queued -> nowhere, for all queued pages."""
        for page in self.writes.queue:
            page.leases -= 1
            self._release_place(page)
        _move_on_flash(self.writes.queue, "withdraw")
        self.writes.queue.clear()

    # --- the accounts -----------------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raises AssertionError if the books do not balance: slots, places, reads, writes, leases."""
        for book in (self.memory, self.places, self.incoming, self.writes, self.copies):
            book.check_integrity(self.pages)
        for page in self.pages:
            assert page.memory not in ("new", "freed")
            assert (page.slot is None) == (page.memory == "absent")
            assert (page.place is None) == (page.flash == "nowhere")
            assert page.slot is not None or page.stored, "its bytes are nowhere"
            assert page.refs > 0 or page.leases > 0 or page.memory == "coming", "nobody has it"
            assert page.memory != "passing" or page.leases > 0, "nobody uses it, and it has not left"
        busy = len(self.writes.queue) + len(self.writes.writing)
        assert sum(page.leases for page in self.pages) == self.held + busy
        sizes: Counter[int] = Counter()
        for page in self.pages:
            sizes[page.track] += page.size
        assert sizes == self.tracks

    # --- inside -----------------------------------------------------------------------------------------------------

    def _vacate(self, page: Page) -> None:
        """Free the slot of ``page``. Beyond the limit, discard its memory too."""
        slot, is_beyond = page.slot, self.memory.is_beyond(page)
        self.memory.vacate(page)
        if is_beyond and slot is not None:
            self._discard(slot, page.size)

    def _release_place(self, page: Page) -> None:
        assert page.place is not None
        self.places.release(page.place)
        page.place = None


def _move(pages: Iterable[Page], step: str) -> None:
    for page in pages:
        try:
            page.memory = MEMORY[page.memory][step]
        except KeyError:
            raise AssertionError(f"a page that is {page.memory!r} cannot take the step {step!r}") from None


def _move_on_flash(pages: Iterable[Page], step: str) -> None:
    for page in pages:
        try:
            page.flash = FLASH[page.flash][step]
        except KeyError:
            raise AssertionError(f"a page that is {page.flash!r} on flash cannot take the step {step!r}") from None
