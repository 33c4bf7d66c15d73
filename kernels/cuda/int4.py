"""Formats ``int4``, ``int4-64`` and ``int4-128`` on a device. Layout: formats/int4.py."""

from collections.abc import Sequence

import torch

from ..formats.int4 import Int4
from .language import OPERAND, ROWS, as_target, count_splits, store, tl, triton

_BLOCK = 64  # rows of a block in memory


class Int4OnDevice:
    """``format`` on a device. See DeviceFormat."""

    def __init__(self, format: Int4) -> None:
        self._format, self._group = format, format.group

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` with rows of the matrix. See DeviceFormat."""
        numbers, scales_and_zeros = self._format.parts(planes[0], n, k)
        first, count = rows.start // _BLOCK, len(out)
        if count:
            _decode[triton.cdiv(count, _BLOCK), len(scales_and_zeros)](
                numbers[first:],
                scales_and_zeros[:, rows.start :],
                as_target(out),
                count,
                k,
                scales_and_zeros.shape[1],
                GROUP=self._group,
            )

    def rows(
        self, planes: Sequence[torch.Tensor], n: int, k: int, ids: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Decode the rows ``ids``. See DeviceFormat."""
        numbers, scales_and_zeros = self._format.parts(planes[0], n, k)
        place = ids % _BLOCK
        half = _BLOCK // 2
        found = numbers[ids // _BLOCK, :, place % half] >> (place // half * 4).to(torch.uint8)[:, None] & 15
        scales, zeros = scales_and_zeros[:, ids].float().permute(2, 1, 0)[..., None]
        weights: torch.Tensor = (found.view(len(ids), len(scales_and_zeros), self._group).float() - 8) * scales + zeros
        return weights.flatten(1)[:, :k].to(dtype)

    def product(self, planes: Sequence[torch.Tensor], n: int, k: int, x: torch.Tensor) -> torch.Tensor | None:
        """Multiply a few rows by the matrix. See DeviceFormat."""
        rows = len(x)
        if not 1 <= rows <= ROWS:
            return None
        numbers, scales_and_zeros = self._format.parts(planes[0], n, k)
        blocks, groups = len(numbers), len(scales_and_zeros)
        count = count_splits(blocks, groups)
        out = x.new_empty(count, rows, n, dtype=torch.bfloat16 if count == 1 else torch.float32)
        _multiply[blocks, count](
            x.contiguous(),
            numbers,
            scales_and_zeros,
            as_target(out),
            rows,
            n,
            k,
            groups,
            triton.cdiv(groups, count),
            GROUP=self._group,
            ROWS=ROWS,
            OPERAND=OPERAND,
        )
        return out[0] if count == 1 else out.sum(0).bfloat16()


@triton.jit
def _decode(
    numbers: tl.tensor,
    scales_and_zeros: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    k: tl.tensor,
    high: tl.tensor,
    GROUP: tl.constexpr,
) -> None:
    """Decode in program (i, j) group j of the columns of block i to out [rows, k].

    ``high`` is the number of rows with the padding of the last block.
    """
    block, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column, lane = tl.arange(0, GROUP)[:, None], tl.arange(0, 32)[None, :]
    packed = tl.load(numbers + ((block * tl.num_programs(1) + group) * GROUP + column) * 32 + lane).to(tl.int32)
    column += group * GROUP
    for half in tl.static_range(2):
        row = block * 64 + half * 32 + lane
        pair = scales_and_zeros + (group * high + row) * 2
        scale, zero = tl.load(pair).to(tl.float32), tl.load(pair + 1).to(tl.float32)
        number = ((packed >> (4 * half)) & 15) - 8
        store(out + row * k + column, number.to(tl.float32) * scale + zero, (row < rows) & (column < k))


@triton.jit
def _multiply(
    x: tl.tensor,
    numbers: tl.tensor,
    scales_and_zeros: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    groups: tl.tensor,
    span: tl.tensor,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    OPERAND: tl.constexpr,
) -> None:
    """Multiply in program (i, j) by block i, ``span`` of its groups of columns, into out[j] [rows, n].

    Scales and zeros are applied to the sums of a group, so that the factors are small integers, exact in bfloat16.
    """
    block, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, lane = tl.arange(0, ROWS)[:, None], tl.arange(0, 32)
    high = tl.num_programs(0) * 64
    low_total = tl.zeros((ROWS, 32), dtype=tl.float32)
    high_total = tl.zeros((ROWS, 32), dtype=tl.float32)
    for group in range(part * span, tl.minimum(groups, part * span + span)):
        column = group * GROUP + tl.arange(0, GROUP)
        state = tl.load(x + row * k + column[None, :], mask=(row < rows) & (column[None, :] < k), other=0.0)
        whole = tl.sum(state.to(tl.float32), 1)[:, None]
        packed = tl.load(numbers + (block * groups * GROUP + column[:, None]) * 32 + lane[None, :]).to(tl.int32)
        below = ((packed & 15) - 8).to(tl.float32).to(OPERAND)
        above = ((packed >> 4) - 8).to(tl.float32).to(OPERAND)
        pair = scales_and_zeros + (group * high + block * 64 + lane[None, :]) * 2
        low_total += tl.dot(state.to(OPERAND), below) * tl.load(pair).to(tl.float32)
        low_total += whole * tl.load(pair + 1).to(tl.float32)
        high_total += tl.dot(state.to(OPERAND), above) * tl.load(pair + 64).to(tl.float32)
        high_total += whole * tl.load(pair + 65).to(tl.float32)
    output = block * 64 + lane[None, :]
    to = out + (part * rows + row).to(tl.int64) * n + output
    store(to, low_total, (row < rows) & (output < n))
    store(to + 32, high_total, (row < rows) & (output + 32 < n))
