"""Format ``int8`` on a device. Layout: formats/int8.py. torch decodes. Products read the numbers once."""

from collections.abc import Sequence

import torch

from ..formats.int8 import view_parts
from .language import OPERAND, ROWS, as_target, count_splits, store, tl, triton

_BLOCK_N, _BLOCK_K = 32, 128


class Int8OnDevice:
    """Format ``int8`` on a device. See DeviceFormat."""

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` with rows of the matrix. See DeviceFormat."""
        numbers, scales = view_parts(planes[0], n, k)
        torch.mul(numbers[rows], scales[rows, None].float(), out=out)

    def rows(
        self, planes: Sequence[torch.Tensor], n: int, k: int, ids: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Decode the rows ``ids``. See DeviceFormat."""
        numbers, scales = view_parts(planes[0], n, k)
        return (numbers[ids] * scales[ids, None].float()).to(dtype)

    def product(self, planes: Sequence[torch.Tensor], n: int, k: int, x: torch.Tensor) -> torch.Tensor | None:
        """Multiply a few rows by the matrix. See DeviceFormat."""
        rows = len(x)
        if not 1 <= rows <= ROWS:
            return None
        numbers, scales = view_parts(planes[0], n, k)
        blocks, steps = triton.cdiv(n, _BLOCK_N), triton.cdiv(k, _BLOCK_K)
        count = count_splits(blocks, steps)
        out = x.new_empty(count, rows, n, dtype=torch.bfloat16 if count == 1 else torch.float32)
        _multiply[blocks, count](
            x.contiguous(),
            numbers,
            scales,
            as_target(out),
            rows,
            n,
            k,
            triton.cdiv(steps, count) * _BLOCK_K,
            ROWS=ROWS,
            BLOCK_N=_BLOCK_N,
            BLOCK_K=_BLOCK_K,
            OPERAND=OPERAND,
        )
        return out[0] if count == 1 else out.sum(0).bfloat16()


@triton.jit
def _multiply(
    x: tl.tensor,
    numbers: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    span: tl.tensor,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """Multiply in program (i, j) by BLOCK_N rows of the matrix, ``span`` of its columns, into out[j] [rows, n]."""
    part = tl.program_id(1)
    row = tl.arange(0, ROWS)
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    line = numbers + output.to(tl.int64)[:, None] * k
    total = tl.zeros((ROWS, BLOCK_N), dtype=tl.float32)
    for at in range(part * span, tl.minimum(k, part * span + span), BLOCK_K):
        column = at + tl.arange(0, BLOCK_K)
        state = tl.load(x + row[:, None] * k + column, mask=(row[:, None] < rows) & (column < k), other=0.0)
        weight = tl.load(line + column, mask=(output[:, None] < n) & (column < k), other=0)
        total = tl.dot(state.to(OPERAND), tl.trans(weight.to(OPERAND)), total)
    scale = tl.load(scales + output, mask=output < n, other=0.0).to(tl.float32)
    to = out + (part * rows + row[:, None]).to(tl.int64) * n + output
    store(to, total * scale, (row[:, None] < rows) & (output < n))
