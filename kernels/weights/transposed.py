"""Copies of parts of a matrix, transposed.

The compiled half is formats/transpose.h. torch's own copy of a part takes up to five times as long.
"""

import torch

from ..native import KERNELS


def copy_transposed(part: torch.Tensor, out: torch.Tensor) -> None:
    """Copy ``part`` [rows, k], contiguous, to ``out`` [k, rows], whose rows may lie apart."""
    if KERNELS is None or part.element_size() != 2 or not part.is_cpu:
        out.copy_(part.t())
        return
    rows, k = part.shape
    KERNELS.transpose(part.data_ptr(), rows, k, out.data_ptr(), out.stride(0), torch.get_num_threads())
