"""The counters of a planner (pure)."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Running totals of blocks, bytes and seconds. ``drive_bytes`` are the bytes read from each drive."""

    expert_hits: int = 0
    expert_misses: int = 0
    dense_hits: int = 0
    dense_misses: int = 0
    demand_bytes: int = 0
    prefetch_bytes: int = 0
    guess_bytes: int = 0
    guess_bytes_used: int = 0
    refine_bytes: int = 0
    refine_failures: int = 0
    reads: int = 0
    evictions: int = 0
    busy_seconds: float = 0.0
    drive_bytes: list[int] = field(default_factory=list)

    @property
    def flash_bytes(self) -> int:
        """Bytes of all reads."""
        return self.demand_bytes + self.prefetch_bytes + self.guess_bytes + self.refine_bytes


def found_ratio(hits: int, misses: int, read: int) -> float:
    """Share of requests, ``hits`` plus ``misses``, that needed no ``read`` from flash; 1.0 without requests."""
    asked = hits + misses
    return max(0, asked - read) / asked if asked else 1.0
