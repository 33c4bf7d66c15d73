"""Pages on their way to flash (pure): the queue, and the one write that is under way."""

from collections import deque
from collections.abc import Collection, Sequence

from .extents import EXTENT
from .pages import Page


class Writes:
    """Pages that are "queued" or "writing". Each has a lease meanwhile: its bytes are taken from its slot."""

    def __init__(self) -> None:
        self.queue: deque[Page] = deque()
        self.writing: Sequence[Page] = ()
        """Pages of the write that is under way."""
        self.number = -1
        """Number of the write under way, or of the last one."""

    def __bool__(self) -> bool:
        return bool(self.queue or self.writing)

    def begin(self) -> Sequence[Page]:
        """Begin the next write. Returns its pages: the first in the queue, and the next ones as long as they are
        neighbours on flash, EXTENT bytes at most."""
        assert not self.writing, "one write at a time"
        run = [self.queue.popleft()]
        end, size = (run[0].place or 0) + run[0].size, run[0].size
        while self.queue and self.queue[0].place == end and size + self.queue[0].size <= EXTENT:
            run.append(self.queue.popleft())
            end, size = end + run[-1].size, size + run[-1].size
        self.writing = run
        self.number += 1
        return run

    def end(self, write: int) -> Sequence[Page]:
        """End write number ``write``. Returns its pages."""
        assert write == self.number
        pages, self.writing = self.writing, ()
        return pages

    def check_integrity(self, pages: Collection[Page]) -> None:
        """Raises AssertionError if the books do not agree with ``pages``, all pages that there are."""
        assert len({*self.queue}) == len(self.queue)
        assert {*self.queue} == {page for page in pages if page.flash == "queued"}
        assert {*self.writing} == {page for page in pages if page.flash == "writing"}
        assert all(page.leases and page.slot is not None for page in (*self.queue, *self.writing))
