"""Triton, which is an extra, and helpers that all kernels share."""

import torch

__all__ = ["OPERAND", "ROWS", "NoTriton", "as_target", "count_splits", "store", "tl", "triton"]


class NoTriton(ImportError):
    """Packed weights need Triton on a CUDA device, and the package is not installed."""


try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise NoTriton(
        f"packed weights on a CUDA device need the triton package ({error}): pip install 'penstock[cuda]'"
    ) from error

OPERAND = tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16
"""Dtype of the operands of ``tl.dot``. Triton's interpreter has no dot of bfloat16. float32 has the same products."""

ROWS = 16
"""Rows of inputs in one pass over a matrix, the fewest that ``tl.dot`` takes."""

_PROGRAMS = 512
"""Programs that keep a device busy."""
_LEAST_STEPS = 4
"""The fewest steps of a program that has only a part of the columns."""


def count_splits(blocks: int, steps: int) -> int:
    """Return the number of parts for a product with ``steps`` steps of columns and ``blocks`` blocks of rows."""
    return max(1, min(-(-_PROGRAMS // blocks), steps // _LEAST_STEPS))


def as_target(out: torch.Tensor) -> torch.Tensor:
    """Return ``out`` in the form that ``store`` needs."""
    return out.view(torch.int16) if out.dtype == torch.bfloat16 else out


@triton.jit
def store(to: tl.tensor, numbers: tl.tensor, mask: tl.tensor) -> None:
    """Store float32 ``numbers``, rounded to the nearest if ``to`` has another dtype. int16 stands for bfloat16."""
    if to.dtype.element_ty == tl.int16:
        # In its interpreter, Triton itself rounds towards zero.
        bits = numbers.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(to, tl.where(numbers == numbers, rounded, 0x7FC0).to(tl.int16), mask=mask)
    else:
        tl.store(to, numbers.to(to.dtype.element_ty), mask=mask)
