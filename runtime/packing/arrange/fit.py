"""Choose an option for each unit of a model, so that all fit into a size with the least expected loss (pure).

A multiple-choice knapsack. Of each unit's options, those on the convex hull of loss over bytes are steps, taken in the
order of what they gain per byte (Sinha and Zoltners, "The Multiple-Choice Knapsack Problem"). A unit whose step does
not fit is passed over from then on, so what is left in the end is less than the next step of any unit.

More bytes never give a larger loss: where a larger size takes the first step that the smaller one could not, it gains
more by it than the smaller one does by all that follows, which is fewer bytes and gains no more by each.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum


@dataclass(frozen=True, slots=True)
class Option:
    """A way to store a unit: what it is called, its bytes, and the loss that is expected of it, 0 or more."""

    name: Hashable
    bytes: int
    loss: float


def least_size(units: Sequence[Sequence[Option]]) -> int:
    """The least size that ``choose_options`` accepts."""
    return sum(min(option.bytes for option in options) for options in units)


def choose_options(units: Sequence[Sequence[Option]], size: int) -> list[Option]:
    """An option of each of ``units``, in ``size`` bytes together. A larger size has no larger loss, and no loss is
    larger than that of one name for all units, where all have it and it fits.

    Raises ValueError below ``least_size``.
    """
    ladder = _Ladder(units)
    if size < ladder.least:
        raise ValueError(f"the least is {ladder.least} bytes")
    uniform = (chosen for chosen in _uniform(units) if _bytes(chosen) <= size)
    return min([ladder.climbed(size), *uniform], key=loss)


def loss(chosen: Sequence[Option]) -> float:
    """The expected loss of all units together."""
    return fsum(option.loss for option in chosen)


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
        self._lowest = [hull[0] for hull in hulls]
        self._steps = [
            _Step(unit, after, after.bytes - before.bytes, before.loss - after.loss)
            for unit, hull in enumerate(hulls)
            for before, after in pairwise(hull)
        ]
        self._steps.sort(key=lambda step: -step.slope)
        self.least = _bytes(self._lowest)

    def climbed(self, size: int) -> list[Option]:
        """The options that are reached by the steps that fit into ``size``."""
        chosen, left = list(self._lowest), size - self.least
        passed: set[int] = set()
        for step in self._steps:
            if step.unit in passed:
                continue
            if step.bytes > left:
                passed.add(step.unit)
                continue
            chosen[step.unit] = step.to
            left -= step.bytes
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
