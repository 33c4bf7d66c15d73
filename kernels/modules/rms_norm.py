"""Norms by the root mean square, bit for bit as a module computes them.

The compiled half is csrc/modules/rms_norm.h. Modules differ in where they round. Which of them it is, and whether
torch's sums are as they were known to be, a comparison with the module itself shows: in float32, where nothing hides
the last bits of the sum, and in the module's own dtype.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..native import KERNELS, LevelKernels

Compute = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The norm of [.., n] with the weight [n]."""

MOST = 32768
"""Numbers from which torch divides its operations between threads."""
_DTYPES = (torch.bfloat16, torch.float32)
_FORMS = (0, 1, 2)
"""See rms_norm.h."""


class RMSNorm(NamedTuple):
    """The norm in one of the forms of rms_norm.h."""

    eps: float
    form: int
    kernels: LevelKernels

    def __call__(self, state: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Compute [.., n] for ``state`` [.., n] and ``weight`` [n], both contiguous, in host memory and of one dtype,
        bfloat16 or float32."""
        out = torch.empty_like(state)
        width = weight.shape[0]
        brief = state.dtype == torch.bfloat16
        addresses = state.data_ptr(), weight.data_ptr(), out.data_ptr()
        self.kernels.rms_norm(*addresses, state.numel() // width, width, self.eps, self.form, brief)
        return out


def find_rms_norm(compute: Compute, width: int, dtype: torch.dtype, eps: float) -> RMSNorm | None:
    """Find the norm that has the bits of ``compute`` for ``width`` numbers of ``dtype``. None if none has."""
    return None if KERNELS is None or dtype not in _DTYPES else try_kernels(compute, width, dtype, eps, KERNELS)


def try_kernels(compute: Compute, width: int, dtype: torch.dtype, eps: float, kernels: LevelKernels) -> RMSNorm | None:
    """Find the norm by ``kernels`` that has the bits of ``compute``. None if none has, or ``compute`` fails."""
    rows = max(2, min(64, (MOST - 1) // width))
    chance = torch.Generator().manual_seed(width)
    size = 10.0 ** torch.linspace(-6, 3, rows)
    state = torch.randn(rows, width, generator=chance) * size[:, None]
    weight = 1 + torch.randn(width, generator=chance) / 4
    pairs = [(state, weight)] if dtype == torch.float32 else [(state, weight), (state.to(dtype), weight.to(dtype))]
    try:
        with torch.no_grad():
            wanted = [compute(*pair) for pair in pairs]
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None
    for form in _FORMS:
        norm = RMSNorm(eps, form, kernels)
        if all(torch.equal(norm(*pair), each) for pair, each in zip(pairs, wanted, strict=True)):
            return norm
    return None
