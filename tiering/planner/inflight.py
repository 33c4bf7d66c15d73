"""The reads in flight, bounded on each drive (pure)."""

from collections.abc import Iterable, Iterator

from ..events import Part, Purpose, Read


class InFlight:
    """Reads that were started and have not ended."""

    def __init__(self, drives: int, depth: int) -> None:
        """At most ``depth`` reads at once on each of ``drives``."""
        self.reads: dict[int, Read] = {}
        """By number."""
        self.depth = depth
        self._on: dict[int, int] = {}  # the drive of each
        self._counts = [0] * drives
        self._since = 0.0  # start of the first read in flight, or end of the last one
        self._next = 0

    def start(self, parts: Iterable[Part], purpose: Purpose, drive: int, now: float) -> Read:
        """Start a read of ``parts`` on ``drive``, and number it."""
        if not self.reads:
            self._since = now
        read = self.reads[self._next] = Read(self._next, tuple(parts), purpose)
        self._on[self._next] = drive
        self._counts[drive] += 1
        self._next += 1
        return read

    def land(self, number: int, now: float) -> tuple[Read, float]:
        """End read ``number``. Returns it, and the seconds that the drives were busy since the last end."""
        self._counts[self._on.pop(number)] -= 1
        seconds, self._since = now - self._since, now
        return self.reads.pop(number), seconds

    def is_busy(self, drive: int) -> bool:
        """Whether ``drive`` has as many reads as it may have."""
        return self._counts[drive] >= self.depth

    def is_idle(self, drive: int) -> bool:
        """Whether ``drive`` has no read."""
        return not self._counts[drive]

    @property
    def has_room(self) -> bool:
        """Whether any drive may have one more read."""
        return min(self._counts) < self.depth

    @property
    def parts(self) -> Iterator[Part]:
        """The blocks being read."""
        return (part for read in self.reads.values() for part in read.parts)

    def check_integrity(self) -> None:
        """Raise AssertionError if a drive has too many reads, or a read is not counted."""
        assert all(0 <= count <= self.depth for count in self._counts), "more reads in flight than there may be"
        assert sum(self._counts) == len(self.reads) == len(self._on)
