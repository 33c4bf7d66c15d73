"""Makes room for pages of KV (pure): which page leaves memory, stays there, or is written so that it can leave.

Every token looks at all pages of all layers in the same order, a cycle. Of a cycle, what was used last will be needed
last: kept pages leave newest first, and of what was read early the last read goes first. A page leaves only when its
bytes are on flash. Where pages are chosen by attention, those that got least of it leave first.
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
        """Pages that were read ahead, and left memory before anybody looked at them."""
        self.trouble: PenstockError | None = None
        """What went wrong with the last write, if anything did."""
        self._books, self._memory = books, books.memory

    def store(self, page: Page) -> None:
        """Have ``page`` written to flash, soon, if it is not there. Raises FlashFull."""
        if page.place is None:
            self._books.queue(page)

    def stays(self, page: Page) -> bool:
        """Keep ``page``, which has passed, if there is room, or in the place of one that got less attention and is on
        flash; whether it is kept. One that is not there yet is written, for the next time."""
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
        """Let the best victim go; whether there was any to go at once. Others are written, to go soon. Raises
        FlashFull."""
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
        """Let go of what has been read and will be needed last; whether there was any."""
        page = self._books.incoming.last_unasked()
        if page is None:
            return False
        self._books.give_up(page)
        self.given_up += 1
        return True

    def make_room_to_pass(self, size: int) -> bool:
        """Whether there is more room than before. Raises BudgetTooSmall, and what keeps room from being made."""
        crowded = self._memory.passing_bytes + size > self._memory.ring  # else the room is in pieces
        if self.give_up_one() or (not crowded and self.evict_one()):
            return True
        if not self._memory.passing_bytes and self.is_stuck():
            raise BudgetTooSmall(f"[kv] host has no room for pages of {format_size(size)} to pass; raise it")
        return False

    def is_stuck(self) -> bool:
        """Whether nothing is under way that could make room. Raises what went wrong with the last write, once: there is
        no room without it."""
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble
        return not (self._books.writes or self._books.held)

    def retreat(self) -> None:
        """Pages beyond the limit leave, or are written to."""
        for page in self._memory.beyond():
            if page.stored:
                self._books.evict(page)
            else:
                with suppress(FlashFull):  # it stays where it is
                    self.store(page)
