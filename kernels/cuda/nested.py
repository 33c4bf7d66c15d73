"""Formats ``nested`` and ``stacked`` on a device, with the planes that are present. Layout: formats/nested.py."""

from collections.abc import Sequence

import torch

from ..formats.nested import TILE, BitNested
from .language import as_target, store, tl, triton

_UNITS = 32  # runs of eight columns that a program decodes


class NestedOnDevice:
    """``format`` on a device. See DeviceFormat."""

    def __init__(self, format: BitNested) -> None:
        self._format = format

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` with rows of the matrix. See DeviceFormat."""
        if len(out):
            self._decode(planes, n, k, out, rows.start, None)

    def rows(
        self, planes: Sequence[torch.Tensor], n: int, k: int, ids: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Decode the rows ``ids``. See DeviceFormat."""
        out = torch.empty(len(ids), k, dtype=dtype, device=ids.device)
        if len(ids):
            self._decode(planes, n, k, out, 0, ids.contiguous())
        return out

    def product(self, planes: Sequence[torch.Tensor], n: int, k: int, x: torch.Tensor) -> torch.Tensor | None:
        """Return None: decoding and torch's product are used. See DeviceFormat."""
        return None

    def _decode(
        self, planes: Sequence[torch.Tensor], n: int, k: int, out: torch.Tensor, first: int, ids: torch.Tensor | None
    ) -> None:
        """Fill ``out`` [rows, k] with the rows from ``first`` on, or with ``ids``."""
        tiles = triton.cdiv(n, TILE)
        lengths = [length // tiles for length in self._format.lengths(n, k)]
        split, missing = self._format.planes == 3, self._format.planes - len(planes)
        units = triton.cdiv(k, 8)
        _decode[triton.cdiv(len(out), TILE), triton.cdiv(units, _UNITS)](
            planes[0],
            planes[1] if split and len(planes) > 1 else planes[0],
            planes[-1],
            as_target(out) if ids is None else ids,
            as_target(out),
            len(out),
            k,
            first,
            *(lengths[0], lengths[-1]),
            lengths[0] - triton.cdiv(k, 16 if split else 8) * 64,
            GATHER=ids is not None,
            SPLIT=split,
            MISSING=missing,
            UNITS=_UNITS,
        )


@triton.jit
def _centred(code: tl.tensor, level: tl.tensor) -> tl.tensor:
    """Return the 4-bit code, with a fraction, that a 2-bit ``code`` stands for in a group with this ``level``."""
    centre = 6.75 + 0.5 * (level % 4).to(tl.float32)
    return centre + (3.25 + 0.5 * (level // 4).to(tl.float32)) * (code.to(tl.float32) - 1.5)


@triton.jit
def _decode(
    planes_0: tl.tensor,
    planes_1: tl.tensor,
    planes_last: tl.tensor,
    ids: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    k: tl.tensor,
    first: tl.tensor,
    length: tl.tensor,
    length_last: tl.tensor,
    head: tl.tensor,
    GATHER: tl.constexpr,
    SPLIT: tl.constexpr,
    MISSING: tl.constexpr,
    UNITS: tl.constexpr,
) -> None:
    """Decode in program (i, j) 16 rows from 16 * i on, UNITS * 8 columns, to out [rows, k].
    A tile has ``length`` bytes in the first plane, ``head`` before its codes, ``length_last`` in the last. MISSING
    planes are absent. Dimensions are [row, unit of eight columns, column in the unit]."""
    place = tl.program_id(0).to(tl.int64) * 16 + tl.arange(0, 16)
    there = place < rows
    row = tl.load(ids + place, mask=there, other=0).to(tl.int64) if GATHER else tl.where(there, place + first, first)
    tile, row = (row // 16)[:, None, None], (row % 16).to(tl.int32)[:, None, None]
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)[None, :, None]
    inside = unit * 8 < k
    column = tl.arange(0, 8)[None, None, :]
    group, groups = unit // 4, (k + 31) // 32

    base = planes_0 + tile * length
    pair = base + 32 * (group + 1) + row
    step = tl.load(pair, mask=inside, other=0).to(tl.int32)
    offset = tl.load(pair + 16, mask=inside, other=0).to(tl.int8, bitcast=True).to(tl.int32)
    scale = tl.load((base + 2 * row).to(tl.pointer_type(tl.bfloat16))).to(tl.float32)
    if SPLIT:
        word = unit // 2 * 64 + row * 4
        shift = column % 2 * 16 + (unit % 2 * 4 + column // 2) * 2
        upper = tl.load((base + head + word).to(tl.pointer_type(tl.int32)), mask=inside, other=0)
        code = (upper >> shift) & 3
        if MISSING < 2:
            lower = planes_1 + tile * (length - head) + word
            code = code * 4 + ((tl.load(lower.to(tl.pointer_type(tl.int32)), mask=inside, other=0) >> shift) & 3)
    else:
        word = base + head + unit * 64 + row * 4
        code = tl.load(word.to(tl.pointer_type(tl.int32)), mask=inside, other=0)
        code = (code >> (column % 2 * 16 + column // 2 * 4)) & 15
    if MISSING == 0:
        word = planes_last + tile * length_last + unit * 64 + row * 4
        left = tl.load(word.to(tl.pointer_type(tl.int32)), mask=inside, other=0)
        left = ((left >> (column % 2 * 16 + column // 2 * 4)) & 15) - 8
        number = ((step * code + 8) // 16 + offset + left).to(tl.float32)
    else:
        if SPLIT and MISSING == 2:
            levels = tl.load(base + 32 * (groups + 1) + group * 8 + row % 8, mask=inside, other=0).to(tl.int32)
            exact_code = _centred(code, (levels >> (row // 8 * 4)) & 15)
        else:
            exact_code = code.to(tl.float32)
        number = step.to(tl.float32) * 0.0625 * exact_code + offset.to(tl.float32)
    at = unit * 8 + column
    store(out + place[:, None, None] * k + at, number * scale, there[:, None, None] & (at < k))
