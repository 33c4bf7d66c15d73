"""Rotary positions of one token's queries and keys, bit for bit as a function of transformers computes them.

The compiled half is csrc/modules/rotary.h. A comparison with the function shows whether it computes the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..native import KERNELS, LevelKernels

Pair = tuple[torch.Tensor, torch.Tensor]
Compute = Callable[..., Any]
"""Queries [1, Hq, 1, D], keys [1, H, 1, D], cosines and sines [1, 1, D] -> queries and keys."""

_TRIALS = 16
_MOST = 32768
"""Numbers from which torch divides its operations between threads."""


class Rotary(NamedTuple):
    """Both by the kernel."""

    kernels: LevelKernels

    def __call__(self, query: torch.Tensor, key: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> Pair:
        """Compute [1, Hq, 1, D] and [1, H, 1, D] for ``query`` and ``key`` of these shapes, ``cosines`` and ``sines``
        [1, 1, D], all bfloat16 in host memory, the numbers of each together."""
        dim, by = query.shape[3], (cosines.data_ptr(), sines.data_ptr())
        outs = torch.empty(query.shape, dtype=query.dtype), torch.empty(key.shape, dtype=key.dtype)
        for heads, out in zip((query, key), outs, strict=True):
            self.kernels.rotate(heads.data_ptr(), heads.shape[1], *by, out.data_ptr(), dim)
        return outs


def is_rotated(query: torch.Tensor, key: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> bool:
    """Return whether ``Rotary`` takes these."""
    dim, shape = query.shape[-1], (1, 1, query.shape[-1])
    if query.dim() != 4 or key.dim() != 4 or cosines.shape != shape or sines.shape != shape or dim % 2:
        return False
    for heads in (query, key):
        one, count, tokens, numbers = heads.shape
        if one != 1 or tokens != 1 or numbers != dim or count * dim >= _MOST:
            return False
    given = query, key, cosines, sines
    return all(each.dtype == torch.bfloat16 and each.is_cpu and each.is_contiguous() for each in given)


def find_rotary(compute: Compute, heads: tuple[int, int], dim: int) -> Rotary | None:
    """Find what has the bits of ``compute`` for so many ``heads`` of queries and of keys. None if nothing has."""
    return None if KERNELS is None else try_rotary(compute, heads, dim, KERNELS)


def try_rotary(compute: Compute, heads: tuple[int, int], dim: int, kernels: LevelKernels) -> Rotary | None:
    """Find the same by ``kernels``. None if it has other bits, or ``compute`` fails."""
    rotary, chance = Rotary(kernels), torch.Generator().manual_seed(dim)
    for trial in range(_TRIALS):
        size = 10.0 ** (trial - _TRIALS // 2)
        shapes = *((1, count, 1, dim) for count in heads), (1, 1, dim), (1, 1, dim)
        query, key, cosines, sines = (torch.randn(shape, generator=chance).bfloat16() for shape in shapes)
        given = query * size, key * size, cosines, sines
        try:
            with torch.no_grad():
                wanted = compute(*given)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return None
        if not isinstance(wanted, tuple) or len(wanted) != 2:
            return None
        if not all(_are_equal(*both) for both in zip(wanted, rotary(*given), strict=True)):
            return None
    return rotary


def _are_equal(wanted: object, ours: torch.Tensor) -> bool:
    return isinstance(wanted, torch.Tensor) and wanted.dtype == ours.dtype and torch.equal(wanted, ours)
