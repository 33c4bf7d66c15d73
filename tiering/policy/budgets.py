"""Which budgets of host memory to look at, and which of them to recommend (pure)."""

from collections.abc import Sequence

from ..units import PAGE

SHARES = (0.0, 0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Of the way from the least budget to the one that holds everything."""
LITTLE = 0.02
"""Share by which more has to be faster before it counts."""


def budgets(least: int, whole: int, wanted: int) -> list[int]:
    """Bytes in ascending order: from ``least``, with which a model runs, to ``whole``, which holds all of it, and
    ``wanted``, where it is not below the least."""
    between = {least + int(share * (whole - least)) // PAGE * PAGE for share in SHARES[:-1]}
    found = {*between, max(least, whole), wanted}
    return sorted(budget for budget in found if budget >= least)


def knee(points: Sequence[tuple[int, float]]) -> int:
    """Of ``points``, budget and tokens per second with ascending budgets, the budget beyond which a byte adds less than
    the average byte between the first and the last.

    That is where the speed is farthest above the straight line from the first to the last; the last, where it never is
    by more than LITTLE of what there is to gain; the first, where there is nothing to gain.
    """
    (first, slowest), (last, fastest) = points[0], points[-1]
    gain = fastest - slowest
    if gain <= LITTLE * slowest:
        return first
    above = [(speed - slowest) - gain * (budget - first) / (last - first) for budget, speed in points]
    best = max(above)
    return points[above.index(best)][0] if best > LITTLE * gain else last
