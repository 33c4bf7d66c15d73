"""Which of the experts that are not on the device are computed by the CPU, where they lie in host memory (pure).

Two lanes: one copies experts up, the other computes them below. Both begin at once, each takes one expert at a time,
and neither an expert that has not come from flash yet. ("Fiddler: CPU-GPU Orchestration for Fast Inference of
Mixture-of-Experts Models" decides the same for each expert alone.)
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Miss(NamedTuple):
    """An expert of ``size`` bytes, wanted for ``rows`` tokens, that is not on the device; ``here``: in host memory."""

    expert: int
    rows: int
    size: int
    here: bool


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, as measured: to ``copy`` a byte up and to ``read`` one from flash; of the CPU for an ``expert``, and for
    each ``row`` of it besides."""

    copy: float
    read: float
    expert: float
    row: float


def below(misses: Sequence[Miss], costs: Costs, *, queued: int = 0) -> frozenset[int]:
    """The experts to compute on the CPU, so that the last of ``misses``, in the order of flash, is done soonest; of
    several such choices the one with the fewest. ``queued`` bytes are copied before any of these.

    Those with the fewest rows go to the CPU: copying takes no longer for many. How many, is tried for all numbers, so
    the end is never later than if all were copied, or none.
    """
    arrivals = _arrivals(misses, costs)
    order = sorted(range(len(misses)), key=lambda at: (misses[at].rows, -misses[at].size, at))

    def copied(count: int) -> float:
        """When the last copy ends, with the first ``count`` of ``order`` on the CPU."""
        jobs = ((arrivals[at], misses[at].size * costs.copy) for at in order[count:])
        return _end(jobs, queued * costs.copy) if count < len(order) else 0.0

    def computed(count: int) -> float:
        return _end(((arrivals[at], costs.expert + misses[at].rows * costs.row) for at in order[:count]), 0.0)

    # With more on the CPU, copies end sooner and the CPU later: the best is where they meet, or the one before.
    counts = range(len(order) + 1)
    meet = bisect_left(counts, True, key=lambda count: computed(count) >= copied(count))
    soonest = min(max(computed(count), copied(count)) for count in counts[max(0, meet - 1) : meet + 1])
    fewest = bisect_left(counts, True, key=lambda count: copied(count) <= soonest)
    return frozenset(misses[at].expert for at in order[:fewest])


def cheapest(misses: Sequence[Miss]) -> frozenset[int]:
    """The one that tells most cheaply what the CPU takes."""
    return frozenset({min(misses, key=lambda miss: (not miss.here, miss.rows)).expert}) if misses else frozenset()


def _arrivals(misses: Iterable[Miss], costs: Costs) -> list[float]:
    """When each is in host memory."""
    found, read = [], 0.0
    for miss in misses:
        read += 0.0 if miss.here else miss.size * costs.read
        found.append(0.0 if miss.here else read)
    return found


def _end(jobs: Iterable[tuple[float, float]], start: float) -> float:
    """When the last job ends that can be begun from a moment on and takes so long, one after the other as they come."""
    end = start
    for arrives, seconds in sorted(jobs, key=lambda job: job[0]):
        end = max(end, arrives) + seconds
    return end
