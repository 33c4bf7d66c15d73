"""What a simulated run comes to (pure)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..planner.counters import Counters, found_ratio


class Passed(NamedTuple):
    """A pass of ``stream``, ``tokens`` from second ``begin`` to ``end``; ``failed`` where a read failed it."""

    stream: int
    tokens: int
    begin: float
    end: float
    failed: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run from its first timed pass to the end of the last one; all but the passes are of these ``seconds``.
    ``untimed`` are the passes before.

    ``counters`` are the planner's, that of host memory where there is a device tier; ``above`` are the device's, to
    which ``bytes_copied`` went in ``bus_busy_seconds``. ``stall_seconds`` is what streams waited for blocks,
    ``compute_seconds`` the time in which cores computed, ``drive_busy_seconds`` that in which each drive had a read
    under way.
    """

    untimed: tuple[Passed, ...]
    passes: tuple[Passed, ...]
    seconds: float
    tokens: int
    counters: Counters
    stall_seconds: float
    compute_seconds: float
    drive_busy_seconds: tuple[float, ...]
    events: int
    above: Counters | None = None
    bytes_copied: int = 0
    bus_busy_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_per_token(self) -> tuple[float, ...]:
        """Of every pass, in the order in which they ended."""
        return tuple((each.end - each.begin) / each.tokens for each in self.passes)

    @property
    def bytes_read(self) -> int:
        return self.counters.flash_bytes

    @property
    def hit_ratio(self) -> float:
        """Share of the requests for experts that found them in memory; where none were asked for, of those for streamed
        layers."""
        read, asked = self.counters, self.above or self.counters
        if asked.expert_hits + asked.expert_misses:
            return found_ratio(asked.expert_hits, asked.expert_misses, read.expert_misses)
        return found_ratio(asked.dense_hits, asked.dense_misses, read.dense_misses)

    @property
    def limited_by(self) -> Literal["flash", "bus", "memory"]:
        """What was busy longest: a drive, the bus to a device, or the cores, which mostly wait for memory."""
        drive = max(self.drive_busy_seconds, default=0.0)
        if max(drive, self.bus_busy_seconds) <= self.compute_seconds:
            return "memory"
        return "flash" if drive > self.bus_busy_seconds else "bus"


def since(before: Counters, after: Counters) -> Counters:
    """What was counted between the two."""
    drives = [b - a for a, b in zip(before.drive_bytes, after.drive_bytes, strict=True)]
    names = [name for name in Counters.__slots__ if name != "drive_bytes"]
    return Counters(**{name: getattr(after, name) - getattr(before, name) for name in names}, drive_bytes=drives)
