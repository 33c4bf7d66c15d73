"""Which of its options each unit of a model takes, so that all fit into a size with the least expected loss (pure).

A multiple-choice knapsack. Of each unit's options, those on the convex hull of loss over bytes are steps, taken in the
order of what they gain per byte (Sinha and Zoltners, "The Multiple-Choice Knapsack Problem"); those that no longer fit
are passed over, and what is left goes to any option that fits. Filling up like this, more bytes may give a larger loss.
So it is done for this size and all less, on a grid that does not depend on the size, and the best is taken, which no
larger size can miss. It ends soon: steps of which a part may be taken give a bound that only falls with the size.
"""

from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import fsum

GRID = 1 << 14
"""Sizes, from the least to the most, that are looked at."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Option:
    """A way to store a unit: what it is called, its bytes, and the loss that is expected of it, 0 or more."""

    name: Hashable
    bytes: int
    loss: float


def least_size(units: Sequence[Sequence[Option]]) -> int:
    """The least size that ``fit`` accepts."""
    return sum(min(option.bytes for option in options) for options in units)


def fit(units: Sequence[Sequence[Option]], size: int) -> list[Option]:
    """An option of each of ``units``, in ``size`` bytes together. A larger size has no larger loss, and no loss is
    larger than that of one name for all units, where all have it and it fits.

    Raises ValueError below ``least_size``.
    """
    ladder = _Ladder(units)
    if size < ladder.least:
        raise ValueError(f"the least is {ladder.least} bytes")
    found = [ladder.filled(ladder.least), *(chosen for chosen in _uniform(units) if _bytes(chosen) <= size)]
    best = min(found, key=_loss)
    for limit in _grid(ladder.least, ladder.most, size):
        loss = _loss(best)
        if ladder.bound(limit) > loss * (1 + _ROUNDING):
            break
        best = min(best, ladder.filled(limit), key=_loss)
    return best


def _grid(least: int, most: int, size: int) -> Iterator[int]:
    """Sizes up to ``size``, downwards: they are the same for all sizes."""
    if size >= most:
        yield most
    step = max(1, (most - least) // GRID)
    for number in range((min(size, most) - least) // step, -1, -1):
        yield least + number * step


@dataclass(frozen=True, slots=True)
class _Step:
    """From one option of a unit on its hull to the next one."""

    unit: int
    to: Option
    bytes: int
    gain: float

    @property
    def slope(self) -> float:
        return self.gain / self.bytes


class _Ladder:
    """All units' steps, the best first."""

    def __init__(self, units: Sequence[Sequence[Option]]) -> None:
        hulls = [_hull(options) for options in units]
        self._units = units
        self._lowest = [hull[0] for hull in hulls]
        self._steps = [
            _Step(unit, after, after.bytes - before.bytes, before.loss - after.loss)
            for unit, hull in enumerate(hulls)
            for before, after in pairwise(hull)
        ]
        self._steps.sort(key=lambda step: -step.slope)
        self.least = _bytes(self._lowest)
        self.most = self.least + sum(step.bytes for step in self._steps)
        self._sizes = list(accumulate((step.bytes for step in self._steps), initial=self.least))
        self._losses = list(accumulate((-step.gain for step in self._steps), initial=_loss(self._lowest)))

    def bound(self, size: int) -> float:
        """A loss that nothing of ``size`` bytes is below: that of all steps that fit, and a part of the next one."""
        taken = bisect_right(self._sizes, size) - 1
        if taken == len(self._steps):
            return self._losses[taken]
        return self._losses[taken] - (size - self._sizes[taken]) * self._steps[taken].slope

    def filled(self, size: int) -> list[Option]:
        """The steps that fit into ``size``, and what else does where one does not."""
        chosen, left = list(self._lowest), size - self.least
        passed: dict[int, None] = {}
        for step in self._steps:
            if step.unit in passed:
                continue
            if step.bytes > left:
                passed[step.unit] = None
                continue
            chosen[step.unit] = step.to
            left -= step.bytes
        for unit in passed:
            now = chosen[unit]
            chosen[unit] = min(
                (option for option in self._units[unit] if option.bytes <= now.bytes + left),
                key=lambda option: (option.loss, option.bytes),
            )
            left -= chosen[unit].bytes - now.bytes
        return chosen


def _hull(options: Sequence[Option]) -> list[Option]:
    """The options that no mixture of others is better than, from the smallest on."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(before: Option, after: Option) -> float:
    return (before.loss - after.loss) / (after.bytes - before.bytes)


def _uniform(units: Sequence[Sequence[Option]]) -> Iterator[list[Option]]:
    """For each name that all units have, its options."""
    named = [{option.name: option for option in options} for options in units]
    for name in named[0] if named else ():
        if all(name in options for options in named):
            yield [options[name] for options in named]


def _bytes(chosen: Sequence[Option]) -> int:
    return sum(option.bytes for option in chosen)


def _loss(chosen: Sequence[Option]) -> float:
    return fsum(option.loss for option in chosen)
