"""Numbers of 8 or 4 bits and their scales with a small squared error, for each row (8) or group of columns (4).

A range that spans all weights is too wide where a few are large. So ranges of several widths are tried, and from each,
numbers and scales are refined in turn: the numbers are the nearest ones for the scale and zero, and these the least
squares solution for the numbers (Lloyd, "Least Squares Quantization in PCM"; alternated as in "Half-Quadratic
Quantization of Large Machine Learning Models"). The best is kept. Errors count by ``importance``, as in "AWQ:
Activation-aware Weight Quantization". Scales and zeros are rounded to bfloat16 before errors and numbers are found.
"""

import torch

LEVELS_8 = 127
LOWEST_4, HIGHEST_4 = -8, 7

_WIDTHS = (1.0, 0.9, 0.8)  # of the range that spans all, for a start
_ROUNDS = 2
_OUTLIERS = 32  # largest numbers of a row among which the end of its range is sought
_LEAST_SCALE = torch.finfo(torch.float32).tiny  # below, its inverse is no number

Group = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def symmetric(rows: torch.Tensor, importance: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 numbers [r, k] and bfloat16 scales [r] for ``rows`` [r, k]: ``number * scale`` is near the weight.

    ``importance`` [k]. Rows of one magnitude are exact. Raises ValueError for NaN and infinities.
    """
    x = finite(rows)
    weights = None if importance is None else _positive(importance)
    sizes = x.abs()
    most = sizes.amax(1)
    # A row of one magnitude is that times plus or minus one.
    best = torch.where(sizes.amin(1) == most, most, most / LEVELS_8)
    best = _rounded(best)
    least = _symmetric_error(x, best, weights)
    for scale in (best, _range_end(sizes, weights) / LEVELS_8):
        for _ in range(_ROUNDS):
            numbers = _nearest_8(x, scale[:, None])
            counted = numbers if weights is None else numbers * weights
            total = (counted * numbers).sum(1)
            scale = torch.where(total > 0, (counted * x).sum(1) / total, scale)
        scale = _rounded(scale)
        error = _symmetric_error(x, scale, weights)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return _nearest_8(x, best[:, None]).to(torch.int8), _storable(best)


def asymmetric(rows: torch.Tensor, group: int, importance: torch.Tensor | None = None) -> Group:
    """uint8 numbers [r, columns], bfloat16 scales and zeros, each [r, columns / group], for ``rows`` [r, k], where
    columns is k, filled up to a multiple of ``group``: ``(number - 8) * scale + zero`` is near the weight, numbers are
    0 to 15.

    ``importance`` [k]. Groups of one value are exact. Raises ValueError for NaN and infinities.
    """
    x, weights = grouped(finite(rows), group, importance)
    low, high = x.amin(0), x.amax(0)
    middle, half = low / 2 + high / 2, high / 2 - low / 2
    sums = _Sums(x, weights)
    best_scale, best_zero, least = middle, middle, torch.full_like(middle, torch.nan)
    for width in _WIDTHS:
        scale = half * (2 * width / (HIGHEST_4 - LOWEST_4))
        zero = middle + scale / 2
        for _ in range(_ROUNDS):
            scale, zero = sums.solution(_nearest_4(x, scale, zero), scale, zero)
        error = sums.error(scale, zero)
        better = ~(error >= least)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        least = torch.where(better, error, least)
    numbers = (_nearest_4(x, best_scale, best_zero) - LOWEST_4).to(torch.uint8)
    return numbers.permute(1, 2, 0).flatten(1), _storable(best_scale), _storable(best_zero)


def finite(rows: torch.Tensor) -> torch.Tensor:
    """``rows`` in float32. Raises ValueError if there is a NaN or an infinity among them."""
    numbers = rows.float()
    if not numbers.isfinite().all():
        raise ValueError("there are NaNs or infinities among the weights: they can only be stored as they are")
    return numbers


class _Sums:
    """Least squares for groups ``x`` [group, ...], each column counting by ``weights`` [group, 1, ...] or alike."""

    def __init__(self, x: torch.Tensor, weights: torch.Tensor | None) -> None:
        self._x, self._weights = x, weights
        if weights is None:
            self._count, self._total = torch.tensor(float(len(x))), x.sum(0)
        else:
            self._count, self._total = weights.sum(0), (weights * x).sum(0)

    def solution(
        self, numbers: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best scale for ``numbers``, rounded, and the best zero for that; ``scale`` where all are equal."""
        counted = numbers if self._weights is None else numbers * self._weights
        total, squares, common = counted.sum(0), (counted * numbers).sum(0), (counted * self._x).sum(0)
        spread = self._count * squares - total * total
        best = (self._count * common - total * self._total) / spread
        scale = _rounded(torch.where(spread > 1e-5 * self._count * squares, best, scale))
        return scale, _rounded((self._total - scale * total) / self._count)

    def error(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        numbers = _nearest_4(self._x, scale, zero)
        errors = numbers.mul_(scale).add_(zero).sub_(self._x).square_()
        return (errors if self._weights is None else errors.mul_(self._weights)).sum(0)


def grouped(x: torch.Tensor, group: int, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``x`` [r, k] as [group, r, groups], and what each column counts, [group, 1, groups], if not alike. Columns that
    fill up the last group are like the last one, and count nothing."""
    rows, k = x.shape
    missing = -k % group
    weights = None if importance is None else _positive(importance)
    if missing:
        x = torch.cat([x, x[:, -1:].expand(rows, missing)], dim=1)
        weights = torch.cat([torch.ones(k) if weights is None else weights, torch.zeros(missing)])
    if weights is not None:
        weights = weights.view(-1, group).T[:, None].contiguous()
    return x.view(rows, -1, group).permute(2, 0, 1).contiguous(), weights


def _positive(importance: torch.Tensor) -> torch.Tensor:
    """A column that never mattered so far still counts a little."""
    mean = importance.mean()
    return importance.clamp(min=1e-3 * mean) / mean if mean > 0 else torch.ones_like(importance)


def _range_end(sizes: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """[r]: the magnitude at which to cut off a row of int8 numbers, of the few largest of ``sizes`` [r, k] the one with
    the least expected error: what is cut off, and a twelfth of a squared step for each other number."""
    tops, at = sizes.topk(min(_OUTLIERS, sizes.shape[1]), dim=1)
    cut_off = (tops[:, None, :] - tops[:, :, None]).clamp_(min=0).square_()
    if weights is not None:
        cut_off *= weights[at][:, None, :]
    count = sizes.shape[1] if weights is None else weights.sum()
    expected = cut_off.sum(2) + (tops / LEVELS_8).square() * (count / 12)
    return tops.gather(1, expected.argmin(1, keepdim=True))[:, 0]


def _symmetric_error(x: torch.Tensor, scale: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    errors = _nearest_8(x, scale[:, None]).mul_(scale[:, None]).sub_(x).square_()
    return (errors if weights is None else errors.mul_(weights)).sum(1)


def _nearest_8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x * _inverse(scale)).round_().clamp_(-LEVELS_8, LEVELS_8)


def _nearest_4(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    return (x - zero).mul_(_inverse(scale)).round_().clamp_(LOWEST_4, HIGHEST_4)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale < _LEAST_SCALE, 0.0, 1 / scale)


def _rounded(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.bfloat16().float()


def _storable(scales: torch.Tensor) -> torch.Tensor:
    if not scales.isfinite().all():
        raise ValueError("the weights are too large for scales in bfloat16: they can only be stored as they are")
    return scales.bfloat16()
