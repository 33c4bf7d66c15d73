"""The reads in flight (pure): on each drive only so many at once."""

from collections.abc import Iterable, Iterator

from ..events import Part, Purpose, Read


class InFlight:
    """Reads that were started, and have not come to their end."""

    def __init__(self, drives: int, depth: int) -> None:
        """At most ``depth`` reads at once on each of ``drives``."""
        self.reads: dict[int, Read] = {}
        """By number."""
        self.depth = depth
        self._on: dict[int, int] = {}  # the drive of each
        self._counts = [0] * drives
        self._since = 0.0  # when the first of these began, or the last one came
        self._next = 0

    def start(self, parts: Iterable[Part], purpose: Purpose, drive: int, now: float) -> Read:
        """A read that begins now."""
        if not self.reads:
            self._since = now
        read = self.reads[self._next] = Read(self._next, tuple(parts), purpose)
        self._on[self._next] = drive
        self._counts[drive] += 1
        self._next += 1
        return read

    def land(self, number: int, now: float) -> tuple[Read, float]:
        """A read has come to its end; the seconds since the last one did, as far as there was something to read."""
        self._counts[self._on.pop(number)] -= 1
        seconds, self._since = now - self._since, now
        return self.reads.pop(number), seconds

    def is_busy(self, drive: int) -> bool:
        """Whether ``drive`` has all the reads it may have."""
        return self._counts[drive] >= self.depth

    def is_idle(self, drive: int) -> bool:
        """Whether ``drive`` has none."""
        return not self._counts[drive]

    @property
    def has_room(self) -> bool:
        """Whether a drive could take one more."""
        return min(self._counts) < self.depth

    @property
    def parts(self) -> Iterator[Part]:
        """What is being read."""
        return (part for read in self.reads.values() for part in read.parts)

    def check_integrity(self) -> None:
        """Raise AssertionError unless no drive has more reads than it may have, and all are counted."""
        assert all(0 <= count <= self.depth for count in self._counts), "more reads in flight than there may be"
        assert sum(self._counts) == len(self.reads) == len(self._on)
