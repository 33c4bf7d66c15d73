"""The format ``lossless`` on a device. Layout: kernels/csrc/formats/lossless.h.

A program decodes a tile, many numbers at a time. The position of a number's code in the next level is the number of
earlier ones without a code in this level. A prefix sum over the current numbers and a count of the earlier ones give
it. A visibly damaged tile becomes NaNs. In any case nothing outside the plane is read.
"""

from collections.abc import Sequence

import torch

from ..formats.lossless_tiles import ROWS
from .language import as_target, tl, triton

_NUMBERS = 2048  # decoded at a time
_WARPS = 8


class LosslessOnDevice:
    """Format ``lossless`` on a device. See DeviceFormat."""

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` with rows of the matrix. See DeviceFormat."""
        if len(out):
            self._decode(planes[0], n, k, out, rows.start, None)

    def rows(
        self, planes: Sequence[torch.Tensor], n: int, k: int, ids: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Decode the rows ``ids``. See DeviceFormat."""
        assert dtype == torch.bfloat16
        out = torch.empty(len(ids), k, dtype=dtype, device=ids.device)
        if len(ids):
            self._decode(planes[0], n, k, out, 0, ids.contiguous())
        return out

    def product(self, planes: Sequence[torch.Tensor], n: int, k: int, x: torch.Tensor) -> torch.Tensor | None:
        """Return None: decoding and torch's product are used. See DeviceFormat."""
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
            as_target(out),
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
    """Load the four bytes at any address as int64."""
    byte = tl.load(at + tl.arange(0, 4)).to(tl.int64)
    return tl.sum(byte << (8 * tl.arange(0, 4)), 0)


@triton.jit
def _code(level: tl.tensor, at: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Load the codes of two bits with the numbers ``at`` in a level."""
    return (tl.load(level + at // 4, mask=mask, other=0).to(tl.int32) >> (at % 4 * 2).to(tl.int32)) & 3


@triton.jit
def _before(which: tl.tensor) -> tl.tensor:
    """Count the set elements before each element."""
    ones = which.to(tl.int32)
    return tl.cumsum(ones, 0) - ones


@triton.jit
def _descend(
    level: tl.tensor, table: tl.tensor, count: tl.tensor, none: tl.tensor, taken: tl.tensor, exponent: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Give the numbers in ``none`` the exponents that ``level`` has for them.

    Returns the exponents, the numbers without an exponent in this level, and the number of its codes that were used.
    """
    turn = taken + _before(none)
    taken += tl.sum(none.to(tl.int32), 0)
    code = _code(level, turn, none & (turn < count))
    exponent = tl.where(none, (table >> (8 * code)) & 255, exponent)
    return exponent, none & (code == 0), taken


@triton.jit
def _copy_rows(pairs: tl.tensor, to: tl.tensor, begin: tl.tensor, end: tl.tensor, NUMBERS: tl.constexpr) -> None:
    """Copy numbers ``begin`` to ``end`` of a tile that is stored plain."""
    lane = tl.arange(0, NUMBERS)
    for at in range(begin, end, NUMBERS):
        kept = at + lane < end
        pair = pairs + 2 * (at + lane)
        low = tl.load(pair, mask=kept, other=0).to(tl.int32)
        high = tl.load(pair + 1, mask=kept, other=0).to(tl.int32)
        tl.store(to + at + lane, (low | high << 8).to(tl.int16), mask=kept)


@triton.jit
def _fill_nan(to: tl.tensor, begin: tl.tensor, end: tl.tensor, NUMBERS: tl.constexpr) -> None:
    """Set numbers ``begin`` to ``end`` of a damaged tile to NaN."""
    lane = tl.arange(0, NUMBERS)
    for at in range(begin, end, NUMBERS):
        tl.store(to + at + lane, tl.full((NUMBERS,), 0x7FC0, tl.int16), mask=at + lane < end)


@triton.jit
def _decode_tile(
    head: tl.tensor,
    escaped: tl.tensor,
    k: tl.tensor,
    right: tl.tensor,
    to: tl.tensor,
    low_row: tl.tensor,
    high_row: tl.tensor,
    NUMBERS: tl.constexpr,
) -> tl.tensor:
    """Decode rows ``low_row`` to ``high_row`` of the tile at ``head``. Returns whether the tile is intact.

    ``escaped`` is the number of bytes of its levels. Nothing is decoded unless ``right``.
    """
    count, lane = 16 * k, tl.arange(0, NUMBERS)
    # Any plane has at least 20 bytes: it has sixteen rows or more of four or more columns.
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
    taken_1, taken_2, taken_3 = count_1 * 0, count_1 * 0, count_1 * 0
    for at in range(0, tl.where(right, count, 0), NUMBERS):
        index = at + lane
        inside = index < count
        place = index % 64
        byte = tl.load(codes + index // 64 * 16 + place % 16, mask=inside, other=0).to(tl.int32)
        code = (byte >> (place // 16 * 2)) & 3
        exponent = (table_0 >> (8 * code)) & 255
        exponent, none, taken_1 = _descend(level_1, table_1, count_1, inside & (code == 0), taken_1, exponent)
        exponent, none, taken_2 = _descend(level_2, table_2, count_2, none, taken_2, exponent)
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
    return right & (taken_1 == count_1) & (taken_2 == count_2) & (taken_3 == count_3)


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
    """Decode in program i tile ``first`` + i to the 16 rows of out [rows, k] from 16 * i on.

    With GATHER, it decodes row ids[i] to row i.
    """
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

    if right & ((number == tiles) | (size == 2 * count)):
        _copy_rows(plane + start, to, low_row * k, high_row * k, NUMBERS)
    else:
        escaped = size - 20 - count // 4 - count
        right = right & (escaped >= 0)
        head = plane + tl.where(right, start, 0)
        if not _decode_tile(head, escaped, k, right, to, low_row, high_row, NUMBERS):
            _fill_nan(to, low_row * k, high_row * k, NUMBERS)
