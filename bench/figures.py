"""Computes every figure from measurements (pure, standard library only), in seconds, bytes, and tokens per second."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the range of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of ``values``."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2, unit: str = "") -> str:
        """Format as "median (low to high)"."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}{unit}"
        return f"{self.median:.{digits}f}{unit} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def speed(seconds: Sequence[float]) -> dict[str, float]:
    """Compute tokens per second from the ``seconds`` of each token: over all of them, and of the median one."""
    return {
        "tokens_per_second": len(seconds) / sum(seconds),
        "tokens_per_second_median": 1 / statistics.median(seconds),
    }


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Subtract two snapshots of counters."""
    return {name: after[name] - before[name] for name in after if isinstance(after[name], int | float)}


def traffic(counted: Mapping[str, Any], seconds: float, tokens: int) -> dict[str, Any]:
    """Compute what ``tokens`` tokens in ``seconds`` asked of the drive, from the ``difference`` of penstock's
    counters."""
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
    """Compute the least seconds of a token: its computing or its reading, whichever takes longer."""
    return max(compute, bytes_per_token / drive_bytes_per_second if bytes_per_token else 0.0)


def find_falls(speeds: Sequence[Spread], tolerance: float) -> list[tuple[int, int]]:
    """Find where more memory is slower beyond noise: pairs (earlier, later) of places in ``speeds``, by ascending
    budgets.

    Beyond noise means that the later median is more than ``tolerance`` (a share) below the earlier one, and that the
    ranges do not meet.
    """
    return [
        (early, late)
        for late in range(len(speeds))
        for early in range(late)
        if speeds[late].median < speeds[early].median * (1 - tolerance) and speeds[late].high < speeds[early].low
    ]


def speed_by_windows(seconds: Sequence[float], size: int) -> list[float]:
    """Compute the tokens per second of each ``size`` tokens in a row. A rest at the end does not count."""
    return [size / sum(seconds[at : at + size]) for at in range(0, len(seconds) - size + 1, size)]
