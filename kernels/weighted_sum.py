"""What the experts of a token add up to, in one call, bit for bit as torch does it in many. The compiled half is
weighted_sum.c."""

import ctypes
from collections.abc import Sequence

import torch

from .native import LIBRARY


def weighted_sum(rows: Sequence[int], weights: Sequence[float], width: int) -> torch.Tensor:
    """[1, width]: ``((0 + rows[0] * weights[0]) + rows[1] * weights[1]) + ...``, rounded after each step.

    ``rows`` are addresses of ``width`` contiguous bfloat16 numbers each; weights are float32 or bfloat16 numbers. There
    must be a LIBRARY.
    """
    assert LIBRARY is not None
    out = torch.empty(1, width, dtype=torch.bfloat16)
    count = len(rows)
    LIBRARY.penstock_weighted_sum(
        count, (ctypes.c_uint64 * count)(*rows), (ctypes.c_float * count)(*weights), out.data_ptr(), width
    )
    return out
