"""Marks that a copy into a part of an arena must wait for: those behind the last work on that part."""

import threading
from bisect import bisect_left, bisect_right
from typing import Generic, TypeVar

from ..waiting import no_waiting

Mark = TypeVar("Mark")


class Fences(Generic[Mark]):
    """Marks on disjoint spans of an arena. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts: list[int] = []
        self._spans: list[tuple[int, Mark]] = []  # ends of the spans, and their marks

    def used(self, offset: int, length: int, mark: Mark) -> None:
        """Note that work on this span ends at ``mark``. Earlier marks on it come before this one."""
        with no_waiting, self._lock:
            self._cut(offset, offset + length)
            at = bisect_left(self._starts, offset)
            self._starts.insert(at, offset)
            self._spans.insert(at, (offset + length, mark))

    def before(self, offset: int, length: int) -> list[Mark]:
        """Return the marks to wait for before a write to this span, and forget them."""
        with no_waiting, self._lock:
            return self._cut(offset, offset + length)

    def _cut(self, start: int, end: int) -> list[Mark]:
        """Remove the span. Returns the marks that were on it."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._spans[first][0] <= start:
            first += 1
        last = bisect_left(self._starts, end)
        if first >= last:
            return []
        marks = [mark for _, mark in self._spans[first:last]]
        left: list[tuple[int, tuple[int, Mark]]] = []
        if self._starts[first] < start:
            left.append((self._starts[first], (start, marks[0])))
        if self._spans[last - 1][0] > end:
            left.append((end, (self._spans[last - 1][0], marks[-1])))
        self._starts[first:last] = [begin for begin, _ in left]
        self._spans[first:last] = [span for _, span in left]
        return marks
