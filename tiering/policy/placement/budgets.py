"""Which budgets of host memory to look at, and which of them to recommend (pure)."""

from collections.abc import Sequence

from ...units import PAGE

SHARES = (0.0, 0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Of the way from the least budget to the one that holds everything."""
ENOUGH = 0.9
"""Share of the best speed beyond which more memory pays little."""


def budgets(least: int, whole: int, wanted: int) -> list[int]:
    """Bytes in ascending order: from ``least``, with which a model runs, to ``whole``, which holds all of it, and
    ``wanted``, where it is not below the least."""
    between = {least + int(share * (whole - least)) // PAGE * PAGE for share in SHARES[:-1]}
    found = {*between, max(least, whole), wanted}
    return sorted(budget for budget in found if budget >= least)


def enough(points: Sequence[tuple[int, float]]) -> int:
    """Of ``points``, budget and tokens per second, the least budget that reaches the share ENOUGH of the best speed."""
    best = max(speed for _, speed in points)
    return min(budget for budget, speed in points if speed >= ENOUGH * best)
