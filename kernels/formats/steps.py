"""The base of bit-nested numbers: the 4-bit code, step and offset that come nearest to each 8-bit number.

An integer q in [-127, 127] of a group of columns is ``z + round(d * b) + r``. Offset z and step d belong to the group,
b in [0, 15] is the code, and r in [-8, 7] is the rest. Without r, the number is ``z + d * b``. Ranges of several widths
are tried, and the best is refined: the codes are the nearest ones for the step and offset, and these are the
least-squares solution for the codes (Lloyd, "Least Squares Quantization in PCM"). A step or offset for which some r
would not fit is moved until it does. nest.h does the same, operation by operation, so that both give the same bits.
"""

from dataclasses import dataclass, fields
from functools import reduce
from typing import TypeVar

import torch
from torch.nn import functional

from .quantise import weigh_columns

GROUP = 32
"""Columns with one step and offset."""
UNIT = 16
"""Steps are multiples of ``1 / UNIT``."""
LEFT = 8
"""Rests lie in [-LEFT, LEFT - 1]."""
MOST_CODE = 15

_LARGEST_STEP = 255
_WIDTHS = (1.0, 0.9)  # shares of the full range
_REFINEMENTS = 2
_TINY = 1e-12


@dataclass(frozen=True)
class Nested:
    """The numbers of rows [h, k] in G groups: float32, all but ``levels`` integers."""

    steps: torch.Tensor
    """[h, G], in units of ``1 / UNIT``, 1 to 255."""
    offsets: torch.Tensor
    """[h, G], -128 to 127."""
    codes: torch.Tensor
    """[GROUP, h, G], 0 to 15, undefined past column k."""
    left: torch.Tensor
    """The rests [GROUP, h, G], -LEFT to LEFT - 1."""
    levels: torch.Tensor | None
    """[h, G], 0 to 15, or None: the meaning of the upper two bits of the codes alone, see ``decode_levels``."""


Number = TypeVar("Number", float, torch.Tensor)


def decode_levels(levels: Number) -> tuple[Number, Number]:
    """Return ``centre`` and ``spread``: upper bits c alone stand for the code ``centre + spread * (c - 1.5)``."""
    return 6.75 + 0.5 * (levels % 4), 3.25 + 0.5 * (levels // 4)


def scale_codes(steps: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return the integer nearest to ``steps / UNIT * codes``, halves rounded up.

    Steps are in units of ``1 / UNIT``, float32.
    """
    return (steps / UNIT * codes).add_(0.5).floor_()


def pad_column_weights(k: int, importance: torch.Tensor | None) -> torch.Tensor:
    """Return the weights of the columns, with zeros for the columns that pad the last group."""
    return functional.pad(weigh_columns(k, importance), (0, -k % GROUP))


def nest(
    weights: torch.Tensor,
    integers: torch.Tensor,
    scales: torch.Tensor,
    importance: torch.Tensor | None = None,
    *,
    leveled: bool = False,
) -> Nested:
    """Divide ``weights`` [h, k] into nested numbers.

    The weights were rounded to ``integers * scales``, scales [h]. All are float32. ``importance`` weighs errors in a
    column. ``levels`` are computed if ``leveled``.
    """
    # A weight that is clipped to 127 counts as 127. Otherwise its rest could be too small for the code's error.
    exact = torch.where(scales[:, None] > 0, weights / scales[:, None], 0).clamp_(integers - 0.5, integers + 0.5)
    fit = _StepSearch(exact, integers, importance)
    steps, offsets = fit.best()
    codes = fit.codes(steps, offsets)
    levels = fit.levels(steps, offsets, codes) if leveled else None
    offsets += fit.centre
    from_offset = fit.integers - offsets
    left = from_offset - scale_codes(steps, codes)
    # With a long step, the nearest code may be one too far away.
    codes += (left >= LEFT).float().sub_((left < -LEFT).float())
    left = from_offset.sub_(scale_codes(steps, codes))
    return Nested(steps, offsets, codes, left, levels)


class _StepSearch:
    """Searches for the steps and offsets of groups.

    Columns come first, so that sums over them run along rows. Weights are counted from an integer near the centre of
    their group, so that sums of squares lose no precision.
    """

    def __init__(self, weights: torch.Tensor, integers: torch.Tensor, importance: torch.Tensor | None) -> None:
        k = integers.shape[1]
        self.integers = _grouped(integers)
        # Weights of the columns, None if all are equal. Columns that pad the last group have no weight.
        self._counts: torch.Tensor | None = None
        if importance is not None or k % GROUP:
            self._counts = pad_column_weights(k, importance).view(-1, GROUP).T[:, None].contiguous()
        least, most = self.integers.amin(0), self.integers.amax(0)
        self.centre = ((least + most) / 2).round_()
        self._weights = _grouped(weights) - self.centre
        # Bounds: a rest reaches LEFT - 1 past the last code, and LEFT before the first.
        self._most_offset, self._least_end = least - self.centre + LEFT, most - self.centre - (LEFT - 1)
        span = self._least_end - self._most_offset
        self._least_steps = ((span - 0.5) * (UNIT / MOST_CODE)).ceil_().clamp_(1, _LARGEST_STEP)
        self._total = torch.full_like(least, GROUP) if self._counts is None else _sum(self._counts)
        counted = self._counted(self._weights)
        self._first, self._second = _sum(counted), _sum(counted * self._weights)

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best steps and offsets [h, G]. Offsets count from the centre."""
        least, most = self._weights.amin(0), self._weights.amax(0)
        width = most - least
        first, *others = (self._tried(width * (part / MOST_CODE), least + width * ((1 - part) / 2)) for part in _WIDTHS)
        best = reduce(_better, others, first)
        for _ in range(_REFINEMENTS):
            best = _better(best, self._tried(best.slope, best.at_zero))
        return best.steps, best.offsets

    def codes(self, steps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Return the nearest codes [GROUP, h, G]."""
        return self._unrounded(steps, offsets).round_().clamp_(0, MOST_CODE)

    def levels(self, steps: torch.Tensor, offsets: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Return the best levels [h, G]."""
        upper = torch.floor(codes / 4).sub_(1.5)
        counted = self._counted(upper)
        first, second = _sum(counted), _sum(counted * upper)
        slope, at_zero = self._line(first, second, _sum(counted * self._weights))
        # In units of codes: the distance of each spread from the best one, and the best centre for it.
        slope, at_zero = slope * (UNIT / steps), (at_zero - offsets) * (UNIT / steps)
        mean = first / self._total.clamp(min=_TINY)
        best, least = torch.zeros_like(steps), torch.full_like(steps, torch.inf)
        for level in range(0, 16, 4):
            lowest, spread = decode_levels(level)
            turned = spread - slope
            centre = ((at_zero - turned * mean - lowest) * 2).round_().clamp_(0, 3)
            apart = lowest + centre / 2 - at_zero
            error = apart * apart * self._total + 2 * apart * turned * first + turned * turned * second
            best = torch.where(error < least, centre + level, best)
            least = torch.minimum(error, least)
        return best

    def _tried(self, step: torch.Tensor, offset: torch.Tensor) -> "_Candidate":
        steps, offsets = self._possible(step, offset)
        by = steps / UNIT
        unrounded = self._unrounded(steps, offsets)
        codes = unrounded.round().clamp_(0, MOST_CODE)
        counted = self._counted(codes)
        first, second, both = _sum(counted), _sum(codes * counted), _sum(unrounded.mul_(counted))
        error = self._second - 2 * offsets * self._first + offsets * offsets * self._total
        error += by * by * (second - 2 * both)
        return _Candidate(steps, offsets, error, *self._line(first, second, by * both + offsets * first))

    def _possible(self, step: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nearest step and offset for which all rests fit."""
        steps = torch.maximum((step * UNIT).round_(), self._least_steps).clamp_(max=_LARGEST_STEP)
        lowest = self._least_end - scale_codes(steps, torch.tensor(float(MOST_CODE)))
        offsets = torch.minimum(torch.maximum(offset.round(), lowest), self._most_offset)
        return steps, (offsets + self.centre).clamp_(-128, 127).sub_(self.centre)

    def _unrounded(self, steps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        inverse = UNIT / steps
        return (self._weights * inverse).sub_(offsets * inverse)

    def _line(self, first: torch.Tensor, second: torch.Tensor, both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit the line through the weights over numbers. Returns its slope, and its value at 0.

        The arguments are the sums of the numbers, of their squares, and of their products with the weights.
        """
        varied = (second * self._total - first * first).clamp_(min=_TINY)
        slope = (both * self._total - first * self._first) / varied
        return slope, (self._first - slope * first) / self._total.clamp(min=_TINY)

    def _counted(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers if self._counts is None else numbers * self._counts


@dataclass(frozen=True)
class _Candidate:
    """A step and an offset for each group, all [h, G]."""

    steps: torch.Tensor
    offsets: torch.Tensor
    error: torch.Tensor
    """The sum of squared errors, up to rounding."""
    slope: torch.Tensor
    at_zero: torch.Tensor
    """The best step and offset for its codes."""


def _better(one: _Candidate, other: _Candidate) -> _Candidate:
    less = other.error < one.error
    return _Candidate(
        *(torch.where(less, getattr(other, field.name), getattr(one, field.name)) for field in fields(one))
    )


def _sum(terms: torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension, in an order that does not depend on torch."""
    four = terms[:4]
    for at in range(4, len(terms), 4):
        four = four + terms[at : at + 4]
    return (four[0] + four[2]) + (four[1] + four[3])


def _grouped(numbers: torch.Tensor) -> torch.Tensor:
    """Regroup [h, k] to [GROUP, h, G].

    The last column pads the last group, so that padding does not widen its range.
    """
    rows, k = numbers.shape
    filled = torch.cat((numbers, numbers[:, -1:].expand(rows, -k % GROUP)), 1)
    return filled.view(rows, -1, GROUP).permute(2, 0, 1).contiguous()
