"""Pages on their way to flash (pure): the queue of those to be written, and the one write that is under way."""

from collections import deque
from collections.abc import Collection, Sequence

from .extents import EXTENT
from .pages import Page


class Writes:
    """Pages that are "queued" or "writing". Each has one lease for as long: its bytes are taken from its slot."""

    def __init__(self) -> None:
        self.queue: deque[Page] = deque()
        self.writing: Sequence[Page] = ()
        """Those of the write that is under way."""
        self.number = -1
        """Of that write, or of the last one."""

    def __bool__(self) -> bool:
        return bool(self.queue or self.writing)

    def begin(self) -> Sequence[Page]:
        """Begin the next write: the first of the queue, with those behind it that are its neighbours on flash, an
        extent at most."""
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
        """Write number ``write`` has ended; its pages."""
        assert write == self.number
        pages, self.writing = self.writing, ()
        return pages

    def check_integrity(self, pages: Collection[Page]) -> None:
        """Raises AssertionError where the books do not agree with ``pages``, all that there are."""
        assert len({*self.queue}) == len(self.queue)
        assert {*self.queue} == {page for page in pages if page.flash == "queued"}
        assert {*self.writing} == {page for page in pages if page.flash == "writing"}
        assert all(page.leases and page.slot is not None for page in (*self.queue, *self.writing))
