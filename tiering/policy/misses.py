"""Chooses the experts missing on the device that the CPU computes in host memory (pure).

One queue copies experts to the device, the other computes them on the CPU. Both begin at once and take one expert at a
time, when it has arrived from flash. "Fiddler: CPU-GPU Orchestration for Fast Inference of Mixture-of-Experts Models"
decides the same for each expert alone.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Miss(NamedTuple):
    """An expert of ``size`` bytes, wanted for ``rows`` tokens, not on the device. ``here``: it is in host memory."""

    expert: int
    rows: int
    size: int
    here: bool


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured seconds: to ``copy`` a byte to the device, to ``read`` one from flash, and of the CPU for an ``expert``
    plus each ``row`` of it."""

    copy: float
    read: float
    expert: float
    row: float


def choose_for_cpu(misses: Sequence[Miss], costs: Costs, *, queued: int = 0) -> frozenset[int]:
    """The experts to compute on the CPU so that the last of ``misses`` is done soonest; of equals the fewest.

    ``misses`` are in the order of flash; ``queued`` bytes are copied before any of these. Experts with the fewest rows
    go to the CPU, since a copy takes as long for many rows. Every number is tried, so the end is never later than if
    all were copied, or none.
    """
    arrivals = _arrivals(misses, costs)
    order = sorted(range(len(misses)), key=lambda at: (misses[at].rows, -misses[at].size, at))

    def copied(count: int) -> float:
        """The end of the last copy, with the first ``count`` of ``order`` on the CPU."""
        jobs = ((arrivals[at], misses[at].size * costs.copy) for at in order[count:])
        return _end(jobs, queued * costs.copy) if count < len(order) else 0.0

    def computed(count: int) -> float:
        return _end(((arrivals[at], costs.expert + misses[at].rows * costs.row) for at in order[:count]), 0.0)

    # With more on the CPU, copies end sooner and the CPU later. The best count is where they meet, or the one before.
    counts = range(len(order) + 1)
    meet = bisect_left(counts, True, key=lambda count: computed(count) >= copied(count))
    soonest = min(max(computed(count), copied(count)) for count in counts[max(0, meet - 1) : meet + 1])
    fewest = bisect_left(counts, True, key=lambda count: copied(count) <= soonest)
    return frozenset(misses[at].expert for at in order[:fewest])


def cheapest(misses: Sequence[Miss]) -> frozenset[int]:
    """The expert that is cheapest to measure the CPU with."""
    return frozenset({min(misses, key=lambda miss: (not miss.here, miss.rows)).expert}) if misses else frozenset()


def _arrivals(misses: Iterable[Miss], costs: Costs) -> list[float]:
    """The time at which each expert is in host memory."""
    found, read = [], 0.0
    for miss in misses:
        read += 0.0 if miss.here else miss.size * costs.read
        found.append(0.0 if miss.here else read)
    return found


def _end(jobs: Iterable[tuple[float, float]], start: float) -> float:
    """The end of the last of ``jobs`` (earliest start, seconds), done one after the other from ``start`` on."""
    end = start
    for arrives, seconds in sorted(jobs, key=lambda job: job[0]):
        end = max(end, arrives) + seconds
    return end
