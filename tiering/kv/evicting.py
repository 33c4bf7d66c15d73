"""Room for pages of KV (pure): which page leaves memory, stays there, or is written so that it can leave.

Every token uses all pages of all layers in the same order, a cycle. In a cycle, the page that was used last is needed
last. So kept pages leave newest first, and pages that were read ahead leave in the opposite order of their reads. A
page leaves only when its bytes are on flash. If attention selects pages, those with the least attention leave first.
"""

from contextlib import suppress

from ..errors import BudgetTooSmall, FlashFull, PenstockError
from ..units import format_size
from .books import PageBooks
from .extents import EXTENT
from .pages import Page


class PageRoom:
    """Room in the memory of ``books``."""

    def __init__(self, books: PageBooks) -> None:
        self.given_up = 0
        """Number of pages that were read ahead and left memory unused."""
        self.trouble: PenstockError | None = None
        """The error of the last write, if it failed."""
        self._books, self._memory = books, books.memory

    def store(self, page: Page) -> None:
        """Queue ``page`` to be written, unless it has a place on flash already. Raises FlashFull."""
        if page.place is None:
            self._books.queue(page)

    def keep(self, page: Page) -> bool:
        """Keep ``page``, which has passed, if there is room for it. Returns whether it is kept.

        A kept page that got less attention gives way to it, if it is on flash. If it is not, it is queued to be
        written, so that it can give way the next time.
        """
        if not self._memory.may_stay(page, len(self._books.tracks)):
            other = self._memory.colder(page) if page.attention_score else None
            if other is None:
                return False
            if not other.stored:
                with suppress(FlashFull):
                    self.store(other)
                return False
            self._books.evict(other)
        self._books.settle(page)
        return True

    def evict_one(self) -> bool:
        """Evict the best victim that is on flash. Returns whether there was one. Better victims are queued to be
        written. Raises FlashFull."""
        unwritten: list[Page] = []
        size = 0
        for page in self._memory.victims():
            if page.stored:
                self._books.evict(page)
                return True
            if size < EXTENT:
                unwritten.append(page)
                size += page.size
        for page in reversed(unwritten):  # in the order of their tokens
            try:
                self.store(page)
            except FlashFull:
                if not self._books.writes:
                    raise
                break
        return False

    def give_up_one(self) -> bool:
        """Give up the page that has been read ahead and is needed last. Returns whether there was one."""
        page = self._books.incoming.last_unasked()
        if page is None:
            return False
        self._books.give_up(page)
        self.given_up += 1
        return True

    def make_room_to_pass(self, size: int) -> bool:
        """Make room for ``size`` bytes in the ring. Returns whether there is more room than before.

        Raises BudgetTooSmall, and the error of a write that should have made room.
        """
        crowded = self._memory.passing_bytes + size > self._memory.ring  # else the room is in pieces
        if self.give_up_one() or (not crowded and self.evict_one()):
            return True
        if not self._memory.passing_bytes and self.is_stuck():
            raise BudgetTooSmall(f"[kv] host has no room for pages of {format_size(size)} to pass; raise it")
        return False

    def is_stuck(self) -> bool:
        """Return whether no write and no holder could make room. Raises the error of the last write, once: it should
        have made room."""
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble
        return not (self._books.writes or self._books.held)

    def retreat(self) -> None:
        """Evict the pages beyond the limit. Pages that are not on flash are queued to be written first."""
        for page in self._memory.beyond():
            if page.stored:
                self._books.evict(page)
            else:
                with suppress(FlashFull):  # it stays where it is
                    self.store(page)
