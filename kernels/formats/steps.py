"""The base of bit-nested numbers: which 4-bit code, and of what step and offset, comes nearest to each 8-bit number.

An integer q in [-127, 127] of a group of columns is ``z + round(d * b) + r``: offset z and step d of the group, code b
in [0, 15], and what is left, r in [-8, 7]. Without r, the number is ``z + d * b``. Ranges of several widths are tried,
and the best refined: the codes are the nearest ones for the step and offset, these the least-squares solution for the
codes (Lloyd, "Least Squares Quantization in PCM"). Steps and offsets that some r would not fit are moved until it does.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

GROUP = 32
"""Columns with one step and offset."""
UNIT = 16
"""Steps are multiples of ``1 / UNIT``."""
LEFT = 8
"""What is left lies in [-LEFT, LEFT - 1]."""
MOST_CODE = 15

_LARGEST_STEP = 255
_WIDTHS = (1.0, 0.93, 0.86)
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
    """[GROUP, h, G], 0 to 15; past column k they mean nothing."""
    left: torch.Tensor
    """[GROUP, h, G], -LEFT to LEFT - 1."""
    levels: torch.Tensor
    """[h, G]: what the upper two bits of the codes mean by themselves, 0 to 15, see ``line``."""


def line(levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes that upper bits c stand for by themselves: ``centre + spread * (c - 1.5)``, float32."""
    return 6.75 + 0.5 * (levels % 4), 3.25 + 0.5 * (levels // 4)


def nearest(steps: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The integer nearest to ``steps / UNIT * codes``, upwards at the half; steps in units of ``1 / UNIT``, float32."""
    return torch.floor((steps * codes + UNIT / 2) / UNIT)


def nest(weights: torch.Tensor, integers: torch.Tensor, importance: torch.Tensor | None) -> Nested:
    """The numbers of ``weights`` [h, k], in units of their rows' scales, and of the ``integers`` that they were rounded
    to; both float32. Errors in a column count by ``importance`` [k]."""
    fit = _Fit(weights, integers, importance)
    steps, offsets = fit.best()
    codes = fit.codes(steps, offsets)
    left = fit.integers - nearest(steps, codes) - offsets
    shift = (left >= LEFT).float().sub_((left < -LEFT).float())
    codes += shift
    left = fit.integers - nearest(steps, codes) - offsets
    return Nested(steps, offsets, codes, left, fit.levels(steps, offsets, codes))


class _Fit:
    """The search for the steps and offsets of groups; columns come first, so that sums over them run along rows."""

    def __init__(self, weights: torch.Tensor, integers: torch.Tensor, importance: torch.Tensor | None) -> None:
        k = weights.shape[1]
        self.integers = _grouped(integers)
        # One that is clipped to 127 counts as that: else its code could not be made up for by what is left.
        self._weights = _grouped(torch.clamp(weights, integers - 0.5, integers + 0.5))
        self._least, self._most = self.integers.amin(0), self.integers.amax(0)
        self._counts: torch.Tensor | None = None
        if importance is not None or k % GROUP:
            counts = torch.ones(k) if importance is None else importance.float()
            self._counts = functional.pad(counts, (0, -k % GROUP)).reshape(-1, GROUP).T.unsqueeze(1)
        self._total = torch.full_like(self._least, GROUP) if self._counts is None else self._counts.sum(0)
        self._sum = self._summed(self._weights)

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Steps and offsets [h, G]."""
        least, most = self._weights.amin(0), self._weights.amax(0)
        centre, width = (least + most) / 2, most - least
        steps, offsets = self._possible(width / MOST_CODE, least)
        error = self._error(steps, offsets)
        for part in _WIDTHS[1:]:
            tried = self._possible(width * (part / MOST_CODE), centre - width * (part / 2))
            steps, offsets, error = self._better(steps, offsets, error, *tried)
        for _ in range(_REFINEMENTS):
            spread, at_zero = self._regression(self.codes(steps, offsets))
            steps, offsets, error = self._better(steps, offsets, error, *self._possible(spread, at_zero))
        return steps, offsets

    def codes(self, steps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """[GROUP, h, G], the nearest ones."""
        return (self._weights - offsets).mul_(UNIT / steps).round_().clamp_(0, MOST_CODE)

    def levels(self, steps: torch.Tensor, offsets: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """[h, G], the best ones."""
        upper = torch.floor(codes / 4).sub_(1.5)
        spread, centre = self._regression(upper)
        first, second = self._summed(upper), self._summed(upper * upper)
        best = error = torch.zeros_like(steps)
        for level in range(16):
            there, by = line(torch.full_like(steps, level))
            # How far the line is from the best one, over all columns.
            apart = offsets + steps / UNIT * there - centre
            turned = steps / UNIT * by - spread
            more = apart * apart * self._total + 2 * apart * turned * first + turned * turned * second
            if level:
                best = torch.where(more < error, level, best)
                error = torch.minimum(more, error)
            else:
                error = more
        return best

    def _possible(self, step: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest step and offset with which all integers can be made up: the least and the greatest of a group are
        at most what is left away from the ends."""
        span = (self._most - self._least - (2 * LEFT - 1)).clamp_(min=0)
        least = torch.ceil((span - 0.5) * (UNIT / MOST_CODE)).clamp_(min=1)
        steps = torch.maximum((step * UNIT).round(), least).clamp_(max=_LARGEST_STEP)
        reach = nearest(steps, torch.full_like(steps, MOST_CODE))
        lowest = self._most - (LEFT - 1) - reach
        offsets = torch.minimum(torch.maximum(offset.round(), lowest), self._least + LEFT).clamp_(-128, 127)
        return steps, offsets

    def _better(
        self,
        steps: torch.Tensor,
        offsets: torch.Tensor,
        error: torch.Tensor,
        other_steps: torch.Tensor,
        other_offsets: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        other = self._error(other_steps, other_offsets)
        less = other < error
        return (
            torch.where(less, other_steps, steps),
            torch.where(less, other_offsets, offsets),
            torch.where(less, other, error),
        )

    def _error(self, steps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        apart = self.codes(steps, offsets).mul_(steps / UNIT).add_(offsets).sub_(self._weights)
        return self._summed(apart.mul_(apart))

    def _regression(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The line through the weights over ``numbers``: its slope, and where it is at 0."""
        first, second = self._summed(numbers), self._summed(numbers * numbers)
        both = self._summed(numbers * self._weights)
        varied = (second * self._total - first * first).clamp_(min=_TINY)
        slope = (both * self._total - first * self._sum) / varied
        return slope, (self._sum - slope * first) / self._total.clamp(min=_TINY)

    def _summed(self, numbers: torch.Tensor) -> torch.Tensor:
        return (numbers if self._counts is None else numbers * self._counts).sum(0)


def _grouped(numbers: torch.Tensor) -> torch.Tensor:
    """[GROUP, h, G] of [h, k]; the last column fills up the last group, so that it is not wider for it."""
    h, k = numbers.shape
    filler = numbers[:, -1:].expand(h, -k % GROUP)
    return torch.cat((numbers, filler), 1).view(h, -1, GROUP).permute(2, 0, 1).contiguous()
