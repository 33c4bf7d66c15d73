"""The format ``lossless`` on a device. Layout: kernels/csrc/lossless.c.

A program decodes a tile, many numbers at a time. Where a number's code lies in the next level is how many before it had
none in this one: a prefix sum over those at a time, and a count of those before. A tile that is damaged, as far as that
shows, becomes NaNs; nothing outside the plane is read in any case.
"""

from collections.abc import Sequence

import torch

from ..formats.lossless_tiles import ROWS
from .language import target, tl, triton

_NUMBERS = 2048  # at a time
_WARPS = 8


class LosslessOnDevice:
    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        if len(out):
            self._decode(planes[0], n, k, out, rows.start, None)

    def rows(
        self, planes: Sequence[torch.Tensor], n: int, k: int, ids: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        assert dtype == torch.bfloat16
        out = torch.empty(len(ids), k, dtype=dtype, device=ids.device)
        if len(ids):
            self._decode(planes[0], n, k, out, 0, ids.contiguous())
        return out

    def product(self, planes: Sequence[torch.Tensor], n: int, k: int, x: torch.Tensor) -> torch.Tensor | None:
        return None

    def _decode(
        self, plane: torch.Tensor, n: int, k: int, out: torch.Tensor, first: int, ids: torch.Tensor | None
    ) -> None:
        """Fill ``out`` [rows, k] with the rows from ``first`` on, or with ``ids``."""
        assert out.dtype == torch.bfloat16
        ends = plane[: n // ROWS * 8].view(torch.int64)
        _decode[triton.cdiv(len(out), ROWS) if ids is None else len(ids),](
            plane,
            len(plane),
            ends,
            ends if ids is None else ids,
            target(out),
            len(out),
            n,
            k,
            first // ROWS,
            GATHER=ids is not None,
            NUMBERS=_NUMBERS,
            num_warps=_WARPS,
        )


@triton.jit
def _word(at: tl.tensor) -> tl.tensor:
    """The four bytes at any address, as int64."""
    byte = tl.load(at + tl.arange(0, 4)).to(tl.int64)
    return tl.sum(byte << (8 * tl.arange(0, 4)), 0)


@triton.jit
def _code(level: tl.tensor, at: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Codes of two bits, number ``at`` of a level."""
    return (tl.load(level + at // 4, mask=mask, other=0).to(tl.int32) >> (at % 4 * 2).to(tl.int32)) & 3


@triton.jit
def _before(which: tl.tensor) -> tl.tensor:
    """How many are set before each."""
    ones = which.to(tl.int32)
    return tl.cumsum(ones, 0) - ones


@triton.jit
def _decode(
    plane: tl.tensor,
    length: tl.tensor,
    ends: tl.tensor,
    ids: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    first: tl.tensor,
    GATHER: tl.constexpr,
    NUMBERS: tl.constexpr,
) -> None:
    """Program i: tile ``first`` + i to the 16 rows of out [rows, k] from 16 * i on; or if GATHER, of the tile that row
    ids[i] lies in, that row to row i."""
    program = tl.program_id(0).to(tl.int64)
    tiles = n // 16
    if GATHER:
        wanted = tl.load(ids + program).to(tl.int64)
        number, low_row, high_row = wanted // 16, wanted % 16, wanted % 16 + 1
        to = out + (program - low_row) * k
    else:
        number, low_row, high_row = program + first, program * 0, tl.minimum(rows - program * 16, 16)
        to = out + program * 16 * k
    start = tl.load(ends + number - 1, mask=number > 0, other=8 * tiles)
    rest_of_rows = start + 2 * (n % 16) * k
    stop = tl.load(ends + number, mask=number < tiles, other=0)
    stop = tl.where(number < tiles, stop, rest_of_rows)
    right = (start >= 8 * tiles) & (stop >= start) & (stop <= length)
    start = tl.where(right, start, 0)
    size = tl.where(right, stop - start, 0)
    count = 16 * k
    lane = tl.arange(0, NUMBERS)

    if right & ((number == tiles) | (size == 2 * count)):
        for begin in range(low_row * k, high_row * k, NUMBERS):
            kept = begin + lane < high_row * k
            pair = plane + start + 2 * (begin + lane)
            low = tl.load(pair, mask=kept, other=0).to(tl.int32)
            high = tl.load(pair + 1, mask=kept, other=0).to(tl.int32)
            tl.store(to + begin + lane, (low | high << 8).to(tl.int16), mask=kept)
    else:
        escaped = size - 20 - count // 4 - count
        right = right & (escaped >= 0)
        head = plane + tl.where(right, start, 0)
        # There are 20 bytes behind the beginning of any plane: sixteen rows or more of four or more columns.
        table_0, table_1, table_2 = _word(head), _word(head + 4), _word(head + 8)
        count_1, count_2 = _word(head + 12), _word(head + 16)
        bytes_1, bytes_2 = (count_1 + 3) // 4, (count_2 + 3) // 4
        count_3 = escaped - bytes_1 - bytes_2
        right = right & (count_3 >= 0)
        level_1 = head + 20
        level_2 = level_1 + bytes_1
        level_3 = level_2 + bytes_2
        codes = head + 20 + escaped
        rest = codes + count // 4
        taken_1, taken_2, taken_3 = start * 0, start * 0, start * 0
        for at in range(0, tl.where(right, count, 0), NUMBERS):
            index = at + lane
            inside = index < count
            place = index % 64
            byte = tl.load(codes + index // 64 * 16 + place % 16, mask=inside, other=0).to(tl.int32)
            code = (byte >> (place // 16 * 2)) & 3
            exponent = (table_0 >> (8 * code)) & 255

            none = inside & (code == 0)
            turn = taken_1 + _before(none)
            taken_1 += tl.sum(none.to(tl.int32), 0)
            code = _code(level_1, turn, none & (turn < count_1))
            exponent = tl.where(none, (table_1 >> (8 * code)) & 255, exponent)

            none = none & (code == 0)
            turn = taken_2 + _before(none)
            taken_2 += tl.sum(none.to(tl.int32), 0)
            code = _code(level_2, turn, none & (turn < count_2))
            exponent = tl.where(none, (table_2 >> (8 * code)) & 255, exponent)

            none = none & (code == 0)
            turn = taken_3 + _before(none)
            taken_3 += tl.sum(none.to(tl.int32), 0)
            other = tl.load(level_3 + turn, mask=none & (turn < count_3), other=0).to(tl.int32)
            exponent = tl.where(none, other, exponent).to(tl.int32)

            both = tl.load(rest + index, mask=inside, other=0).to(tl.int32)
            low = (both & 0x7F) | (exponent & 0x80)
            high = (both & 0x80) | (exponent & 0x7F)
            row = place // 16 * 4 + place % 8 // 2
            column = index // 64 * 4 + place // 8 % 2 * 2 + place % 2
            kept = inside & (row >= low_row) & (row < high_row)
            tl.store(to + row.to(tl.int64) * k + column, (low | high << 8).to(tl.int16), mask=kept)
        if ((right == 0) | (taken_1 != count_1)) | ((taken_2 != count_2) | (taken_3 != count_3)):
            for begin in range(low_row * k, high_row * k, NUMBERS):
                tl.store(to + begin + lane, tl.full((NUMBERS,), 0x7FC0, tl.int16), mask=begin + lane < high_row * k)
