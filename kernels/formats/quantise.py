"""Quantisation to 8 or 4 bits with a small squared error, with a scale for each row (8) or group of columns (4).

A range that spans all weights is too wide where a few weights are large. So ranges of several widths are tried. From
each, numbers and scales are refined in turn: the numbers are the nearest ones for the scale and zero, and scale and
zero are the least-squares solution for the numbers. Sources: Lloyd, "Least Squares Quantization in PCM"; alternation as
in "Half-Quadratic Quantization of Large Machine Learning Models". The best result is kept. Errors are weighed by
``importance``, as in "AWQ: Activation-aware Weight Quantization". Scales and zeros are rounded to bfloat16 before
errors and numbers are computed.

quantise_int4.h quantises groups to 4 bits, or torch's operations do in the same steps. quantise_int8.h quantises
rows to 8 bits, or torch's operations do in the same steps and with the same bits.
"""

from collections.abc import Iterable, Iterator

import torch
from torch.nn import functional

from ..native import KERNELS
from .base import SLAB

LEVELS_8 = 127
LOWEST_4, HIGHEST_4 = -8, 7

_WIDTHS = (1.02, 0.98, 0.94, 0.9, 0.86, 0.82)  # first ranges, as shares of the full one
_ROUNDS = 4  # refinements of 4-bit numbers
_APART = 128  # separate partial sums of a row
_LEAST_SCALE = torch.finfo(torch.float32).tiny  # below, the inverse is infinite

QuantisedGroups = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def split_tiles(slabs: Iterable[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield SLAB rows at a time with the number of the first, so that no sum depends on the size of a slab."""
    first = 0
    for slab in slabs:
        for at in range(0, len(slab), SLAB):
            tile = slab[at : at + SLAB]
            yield first, tile
            first += len(tile)


def quantise_rows(rows: torch.Tensor, importance: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise ``rows`` [r, k] to int8 numbers [r, k] and bfloat16 scales [r]: ``number * scale`` is near the weight.

    ``importance`` [k] weighs the columns. Rows of one magnitude are exact. Raises ValueError for NaN and infinities.
    """
    x = _finite(rows)
    weights = weigh_columns(x.shape[1], importance)
    numbers, scales = (_scaled_by_torch if KERNELS is None else _scaled_by_ours)(x, weights)
    return numbers, _storable(scales)


def _scaled_by_ours(x: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    assert KERNELS is not None
    x = x.contiguous()
    rows, k = x.shape
    numbers, scales = torch.empty(rows, k, dtype=torch.int8), torch.empty(rows, dtype=torch.bfloat16)
    widths = torch.tensor(_WIDTHS)
    KERNELS.quantise_int8(
        *(part.data_ptr() for part in (x, weights, numbers, scales)),
        rows,
        k,
        widths.data_ptr(),
        len(widths),
        torch.get_num_threads(),
    )
    return numbers, scales


def _scaled_by_torch(x: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = x.abs()
    most = sizes.amax(1)
    # A row of one magnitude is the magnitude times plus or minus one.
    first = _rounded(torch.where(sizes.amin(1) == most, most, most / LEVELS_8))
    best, least = first, _error_8(x, first, weights)
    for width in _WIDTHS:
        scale = first * width
        numbers = _nearest_8(x, scale)
        counted = numbers * weights
        squares = _row_sums(counted * numbers)
        scale = _rounded(torch.where(squares > 0, _row_sums(counted.mul_(x)) / squares, scale))
        error = _error_8(x, scale, weights)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return _nearest_8(x, best).to(torch.int8), best


def quantise_groups(rows: torch.Tensor, group: int, importance: torch.Tensor | None = None) -> QuantisedGroups:
    """Quantise ``rows`` [r, k] to 4 bits: ``(number - 8) * scale + zero`` is near the weight.

    Returns uint8 numbers [r, columns], 0 to 15, and bfloat16 scales and zeros, each [r, columns / group]. ``columns``
    is k, padded to a multiple of ``group``. ``importance`` [k] weighs the columns. Groups of one value are exact.
    Raises ValueError for NaN and infinities.
    """
    x = _finite(rows)
    missing = -x.shape[1] % group
    weights = torch.cat([weigh_columns(x.shape[1], importance), torch.zeros(missing)])
    numbers, scales, zeros = (_found_by_torch if KERNELS is None else _found_by_ours)(x, group, weights)
    return numbers, _storable(scales), _storable(zeros)


def _found_by_ours(x: torch.Tensor, group: int, weights: torch.Tensor) -> QuantisedGroups:
    assert KERNELS is not None
    x = x.contiguous()
    rows, columns = len(x), len(weights)
    numbers = torch.empty(rows, columns, dtype=torch.uint8)
    scales, zeros = torch.empty(2, rows, columns // group, dtype=torch.bfloat16)
    widths = torch.tensor(_WIDTHS)
    KERNELS.quantise_int4(
        *(part.data_ptr() for part in (x, weights, numbers, scales, zeros)),
        rows,
        x.shape[1],
        group,
        widths.data_ptr(),
        len(widths),
        _ROUNDS,
        torch.get_num_threads(),
    )
    return numbers, scales, zeros


def _found_by_torch(x: torch.Tensor, group: int, weights: torch.Tensor) -> QuantisedGroups:
    rows, k = x.shape
    # Columns that pad the last group equal the last column, and have no weight.
    x = torch.cat([x, x[:, -1:].expand(rows, len(weights) - k)], dim=1)
    fit = _GroupFit(
        x.view(rows, -1, group).permute(2, 0, 1).contiguous(), weights.view(-1, group).T[:, None].contiguous()
    )
    low, high = fit.x.amin(0), fit.x.amax(0)
    middle, half = low / 2 + high / 2, high / 2 - low / 2
    best_scale, best_zero, least = middle, middle, torch.full_like(middle, torch.nan)
    for width in _WIDTHS:
        scale = half * (2 * width / (HIGHEST_4 - LOWEST_4))
        zero = middle + scale / 2
        for _ in range(_ROUNDS):
            scale, zero = fit.improved(scale, zero)
        error = fit.error(scale, zero)
        better = ~(error >= least)  # also true if ``least`` is NaN
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        least = torch.where(better, error, least)
    numbers = fit.numbers(best_scale, best_zero).sub_(LOWEST_4).to(torch.uint8)
    return numbers.permute(1, 2, 0).flatten(1), best_scale, best_zero


class _GroupFit:
    """Quantises groups ``x`` [group, rows, groups] to 4 bits. ``weights`` [group, 1, groups] weighs each column."""

    def __init__(self, x: torch.Tensor, weights: torch.Tensor) -> None:
        self.x, self._weights = x, weights
        self._numbers, self._products = torch.empty_like(x), torch.empty_like(x)  # new memory costs more than a pass
        self._count, self._total = weights.sum(0), (weights * x).sum(0)

    def numbers(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Compute the nearest numbers, in memory that the next call reuses."""
        inverse = _inverse(scale)
        return torch.sub(self.x, zero, out=self._numbers).mul_(inverse).round_().clamp_(LOWEST_4, HIGHEST_4)

    def improved(self, scale: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the best scale for the nearest numbers, rounded, and the best zero for it.

        Where all these numbers are equal, ``scale`` stays as it is.
        """
        numbers, products = self.numbers(scale, zero), self._products
        squares = self._sum(torch.mul(numbers, numbers, out=products))
        common = self._sum(torch.mul(numbers, self.x, out=products))
        total = self._sum(numbers)
        spread = self._count * squares - total * total
        best = (self._count * common - total * self._total) / spread
        scale = _rounded(torch.where(spread > 1e-5 * self._count * squares, best, scale))
        return scale, _rounded((self._total - scale * total) / self._count)

    def error(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        return self._sum(self.numbers(scale, zero).mul_(scale).add_(zero).sub_(self.x).square_())

    def _sum(self, terms: torch.Tensor) -> torch.Tensor:
        """Sum ``terms``, and overwrite them."""
        return terms.mul_(self._weights).sum(0)


def _finite(rows: torch.Tensor) -> torch.Tensor:
    numbers = rows.float()
    # One pass; isfinite takes several, and longer than a kernel. A NaN is the least and the greatest of its tensor.
    if numbers.numel() and not all(end.isfinite() for end in numbers.aminmax()):
        raise ValueError("there are NaNs or infinities among the weights: they can only be stored as they are")
    return numbers


def weigh_columns(k: int, importance: torch.Tensor | None) -> torch.Tensor:
    """Return the weights of the columns [k], 1 on average. A column without importance still has a small weight."""
    mean = 0.0 if importance is None else float(importance.mean())
    return torch.ones(k) if importance is None or mean == 0 else importance.float().clamp(min=1e-3 * mean) / mean


def _error_8(x: torch.Tensor, scale: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return _row_sums(_nearest_8(x, scale).mul_(scale[:, None]).sub_(x).square_().mul_(weights))


def _row_sums(terms: torch.Tensor) -> torch.Tensor:
    """Sum [r, k] to [r] in an order that does not depend on torch: every 128th column, then in halves."""
    parts = functional.pad(terms, (0, -terms.shape[1] % _APART)).view(len(terms), -1, _APART)
    sums = parts[:, 0]
    for number in range(1, parts.shape[1]):
        sums = sums + parts[:, number]
    while sums.shape[1] > 1:
        lower, upper = sums.chunk(2, dim=1)
        sums = lower + upper
    return sums[:, 0]


def _nearest_8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x * _inverse(scale)[:, None]).round_().clamp_(-LEVELS_8, LEVELS_8)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale < _LEAST_SCALE, 0.0, 1 / scale)


def _rounded(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.bfloat16().float()


def _storable(scales: torch.Tensor) -> torch.Tensor:
    if not scales.isfinite().all():
        raise ValueError("the weights are too large for scales in bfloat16: they can only be stored as they are")
    return scales.bfloat16()
