"""Triton, which is an extra, and what all kernels share."""

import torch

__all__ = ["OPERAND", "ROWS", "NoTriton", "splits", "store", "target", "tl", "triton"]


class NoTriton(ImportError):
    """Packed weights are to be used on a CUDA device, and the package that compiles their kernels is not there."""


try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise NoTriton(
        f"packed weights on a CUDA device need the triton package ({error}): pip install 'penstock[cuda]'"
    ) from error

OPERAND = tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16
"""What is multiplied by ``tl.dot``. Triton's interpreter has no dot of bfloat16; float32 has the same products."""

ROWS = 16
"""Of inputs, in one pass over a matrix: as few as ``tl.dot`` takes."""

_PROGRAMS = 512
"""That keep a device busy."""
_LEAST_STEPS = 4
"""Of a program that has a part of the columns only."""


def splits(blocks: int, steps: int) -> int:
    """Into how many parts to cut a product whose columns are ``steps``, where the rows of the matrix are ``blocks``."""
    return max(1, min(-(-_PROGRAMS // blocks), steps // _LEAST_STEPS))


def target(out: torch.Tensor) -> torch.Tensor:
    """``out`` as ``store`` takes it."""
    return out.view(torch.int16) if out.dtype == torch.bfloat16 else out


@triton.jit
def store(to: tl.tensor, numbers: tl.tensor, mask: tl.tensor) -> None:
    """Store float32 ``numbers``, rounded to the nearest if ``to`` is another dtype; int16 stands for bfloat16."""
    if to.dtype.element_ty == tl.int16:
        # Triton's own rounding, in its interpreter, is towards zero.
        bits = numbers.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(to, tl.where(numbers == numbers, rounded, 0x7FC0).to(tl.int16), mask=mask)
    else:
        tl.store(to, numbers.to(to.dtype.element_ty), mask=mask)
