"""Budgets of host memory to compare, and the one to recommend (pure)."""

from collections.abc import Sequence

from ...units import PAGE

SHARES = (0.0, 0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of the way from the least budget to the one that holds everything."""
ENOUGH = 0.9
"""Share of the best speed beyond which more memory pays little."""


def budgets(least: int, whole: int, wanted: int) -> list[int]:
    """Budgets in bytes, ascending, from ``least``, the minimum, to ``whole``, which holds the whole model.

    ``wanted`` is among them unless it is below the minimum.
    """
    between = {least + int(share * (whole - least)) // PAGE * PAGE for share in SHARES[:-1]}
    found = {*between, max(least, whole), wanted}
    return sorted(budget for budget in found if budget >= least)


def enough(points: Sequence[tuple[int, float]]) -> int:
    """The least budget of ``points`` (budget, tokens per second) that reaches the share ENOUGH of the best speed."""
    best = max(speed for _, speed in points)
    return min(budget for budget, speed in points if speed >= ENOUGH * best)
