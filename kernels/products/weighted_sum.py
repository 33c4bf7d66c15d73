"""Weighted sums of experts' outputs, bit for bit as torch computes them step by step.

The compiled half is products/weighted_sum.h. Without it torch computes the same bits.

All functions except ``add_by_torch`` need tensors in host memory.
"""

import ctypes
from collections.abc import Sequence

import torch

from ..calls import view_memory
from ..native import KERNELS

_WEIGHTS = (torch.bfloat16, torch.float32)


def sum_weighted(rows: Sequence[int], weights: Sequence[float], width: int) -> torch.Tensor:
    """Compute [1, width]: ``((0 + rows[0] * weights[0]) + rows[1] * weights[1]) + ...``, rounded after each step.

    ``rows`` are addresses of ``width`` contiguous bfloat16 numbers each. The weights are float32 or bfloat16 numbers.
    """
    out = torch.zeros(1, width, dtype=torch.bfloat16)
    if KERNELS is None:
        for address, weight in zip(rows, weights, strict=True):
            row = view_memory(address, 2 * width).view(torch.bfloat16)
            out += (row.float() * torch.tensor(weight, dtype=torch.float32)).bfloat16()
        return out
    count = len(rows)
    addresses, numbers = (ctypes.c_uint64 * count)(*rows), (ctypes.c_float * count)(*weights)
    KERNELS.add_weighted(count, addresses, numbers, (ctypes.c_int64 * count)(), out.data_ptr(), width, 1)
    return out


def add_weighted(to: torch.Tensor, rows: torch.Tensor, out: torch.Tensor, weights: torch.Tensor) -> None:
    """Compute ``to[rows[i]] += out[i] * weights[i]`` for each i, in place.

    ``to`` is [tokens, width], contiguous, ``rows`` and ``weights`` [count], ``out`` [count, width]. Every product is
    rounded to the dtype of ``to`` before it is added.
    """
    ours = to.is_cpu and to.dtype == out.dtype == torch.bfloat16 and weights.dtype in _WEIGHTS
    if KERNELS is None or not ours:
        add_by_torch(to, rows, out, weights)
        return
    count, width = out.shape
    out, numbers = out.contiguous(), weights.float().contiguous()
    addresses = torch.arange(count).mul_(2 * width).add_(out.data_ptr())
    KERNELS.add_weighted(
        count,
        addresses.data_ptr(),
        numbers.data_ptr(),
        rows.contiguous().data_ptr(),
        to.data_ptr(),
        width,
        torch.get_num_threads(),
    )


def add_by_torch(to: torch.Tensor, rows: torch.Tensor, out: torch.Tensor, weights: torch.Tensor) -> None:
    """Compute the same as ``add_weighted``, on any device.

    ``rows`` must be distinct: the device would choose their order.
    """
    to.index_add_(0, rows, (out * weights[:, None]).to(to.dtype))
