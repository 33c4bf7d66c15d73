"""The outcome of a simulated run (pure)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..planner.counters import Counters, found_ratio


class Passed(NamedTuple):
    """A pass of ``stream`` with ``tokens`` tokens, from second ``begin`` to ``end``. ``failed``: a read failed."""

    stream: int
    tokens: int
    begin: float
    end: float
    failed: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The ``seconds`` from the start of the first timed pass to the end of the last one. ``untimed`` passes came
    before.

    ``counters`` are those of the host tier's planner, ``above`` those of the device tier's. ``bytes_copied`` went to
    the device in ``bus_busy_seconds``. Streams waited ``stall_seconds`` for blocks, cores computed for
    ``compute_seconds``, and each drive had reads in flight for its ``drive_busy_seconds``.
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
    kv_bytes_read: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all timed passes per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_per_token(self) -> tuple[float, ...]:
        """Seconds per token of every pass, in the order of their ends."""
        return tuple((each.end - each.begin) / each.tokens for each in self.passes)

    @property
    def bytes_read(self) -> int:
        """Bytes read from all drives."""
        return self.counters.flash_bytes

    @property
    def hit_ratio(self) -> float:
        """Share of requests for experts that hit. Without any, the share for streamed layers."""
        read, asked = self.counters, self.above or self.counters
        if asked.expert_hits + asked.expert_misses:
            return found_ratio(asked.expert_hits, asked.expert_misses, read.expert_misses)
        return found_ratio(asked.dense_hits, asked.dense_misses, read.dense_misses)

    @property
    def limited_by(self) -> Literal["flash", "bus", "memory"]:
        """The busiest resource: a drive, the bus to a device, or the cores, which mostly wait for memory."""
        drive = max(self.drive_busy_seconds, default=0.0)
        if max(drive, self.bus_busy_seconds) <= self.compute_seconds:
            return "memory"
        return "flash" if drive > self.bus_busy_seconds else "bus"


def since(before: Counters, after: Counters) -> Counters:
    """The counts between ``before`` and ``after``."""
    drives = [b - a for a, b in zip(before.drive_bytes, after.drive_bytes, strict=True)]
    names = [name for name in Counters.__slots__ if name != "drive_bytes"]
    return Counters(**{name: getattr(after, name) - getattr(before, name) for name in names}, drive_bytes=drives)
