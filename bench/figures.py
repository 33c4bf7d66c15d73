"""What is computed from what was measured (pure, standard library only). Seconds, bytes, tokens per second."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several rounds: the median, and the range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2, unit: str = "") -> str:
        if self.low == self.high:
            return f"{self.median:.{digits}f}{unit}"
        return f"{self.median:.{digits}f}{unit} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def speed(seconds: Sequence[float]) -> dict[str, float]:
    """Of tokens that took ``seconds`` each: tokens per second over all of them, and of the median one."""
    return {
        "tokens_per_second": len(seconds) / sum(seconds),
        "tokens_per_second_median": 1 / statistics.median(seconds),
    }


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What the counters counted between two snapshots."""
    return {name: after[name] - before[name] for name in after if isinstance(after[name], int | float)}


def traffic(counted: Mapping[str, Any], seconds: float, tokens: int) -> dict[str, Any]:
    """What ``tokens`` tokens in ``seconds`` asked of the drive, from the ``difference`` of penstock's counters."""
    hits, misses = counted["expert_hits"], counted["expert_misses"]
    if not hits + misses:
        hits, misses = counted["dense_hits"], counted["dense_misses"]
    read, busy = counted["flash_bytes_read"], counted["flash_read_s"]
    return {
        "hit_ratio": hits / (hits + misses) if hits + misses else 1.0,
        "flash_bytes_per_token": read / tokens,
        "bytes_per_read": read / counted["reads"] if counted["reads"] else 0.0,
        "stall_share": counted["stall_s"] / seconds,
        "drive_busy_share": busy / seconds,
        "drive_bytes_per_second_while_busy": read / busy if busy else 0.0,
    }


def limit_seconds(*, compute: float, bytes_per_token: float, drive_bytes_per_second: float) -> float:
    """The least a token can take: all its computing, or all its reading, whichever takes longer."""
    return max(compute, bytes_per_token / drive_bytes_per_second if bytes_per_token else 0.0)


def falls(speeds: Sequence[Spread], tolerance: float) -> list[tuple[int, int]]:
    """Where more memory is slower beyond noise: pairs (earlier, later) of places in ``speeds``, ascending budgets.

    Beyond noise: the later median is more than ``tolerance`` (a share) below the earlier, and the ranges do not meet.
    """
    return [
        (early, late)
        for late in range(len(speeds))
        for early in range(late)
        if speeds[late].median < speeds[early].median * (1 - tolerance) and speeds[late].high < speeds[early].low
    ]


def windows(seconds: Sequence[float], size: int) -> list[float]:
    """Tokens per second of each ``size`` tokens one after the other; what is left over at the end is left out."""
    return [size / sum(seconds[at : at + size]) for at in range(0, len(seconds) - size + 1, size)]
