"""Formats of checkpoints that are already quantised: rows in blocks of numbers with a scale, stored unchanged.

A plane consists of parts. A part is a table of bytes with a line per row of the matrix, or per several rows, and starts
at a multiple of 64 bytes. Decoded numbers are those of the source's own definition in float32, rounded once to the
requested dtype. The compiled half is blocks.h. Without it, torch decodes.
"""

import ctypes
import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from ..calls import make_product, with_team
from ..native import KERNELS
from .base import SLAB, PlaneAllocator, Product, UnsuitableShape, Window, allocate_on_heap
from .planes import check_decode

MOST_ROWS = 4
"""The most rows that one pass over the matrix serves."""

_ALIGNMENT = 64
_AT_ONCE = 4 * SLAB  # rows that torch decodes at a time


class Kind(enum.IntEnum):
    """The decoder in blocks.h, in the order of its table."""

    Q8_0 = 0
    Q4_0 = 1
    Q4_1 = 2
    Q5_0 = 3
    Q5_1 = 4
    Q4_K = 5
    Q5_K = 6
    Q6_K = 7
    MXFP4 = 8
    FP8 = 9
    UINT4 = 10


class PlanePart(NamedTuple):
    """A part of a plane: a table of bytes, ``lines`` of ``width``.

    Each line belongs to ``rows`` rows of the matrix, the last one perhaps to fewer. If ``rows`` is 0, each line belongs
    to all rows.
    """

    lines: int
    width: int
    rows: int = 1


class Blocks:
    """A Format whose matrices are stored in ``parts``. A subclass defines the parts, and their decoding with torch."""

    exact = False
    planes = 1
    any_bytes = True
    name: str
    kind: Kind
    group = 1
    """Numbers of a row that share a scale, if ``kind`` leaves it open."""
    ordered = False
    """Whether the last part is int32 [k]: the column of each stored number."""

    def parts(self, n: int, k: int) -> tuple[PlanePart, ...]:
        """Return the parts of a matrix [n, k]. Raises UnsuitableShape."""
        raise NotImplementedError

    def numbers(self, parts: Sequence[torch.Tensor], k: int) -> torch.Tensor:
        """Decode to float32 [rows, k] from the lines of all parts for these rows, uint8 [rows, width] each."""
        raise NotImplementedError

    def lengths(self, n: int, k: int) -> tuple[int]:
        """Return the bytes of the plane. Raises UnsuitableShape. See Format."""
        parts = self.parts(n, k)
        return (_offsets(parts)[-1] + parts[-1].lines * parts[-1].width,)

    def encode(
        self,
        slabs: Iterable[torch.Tensor],
        n: int,
        k: int,
        importance: torch.Tensor | None = None,
        room: PlaneAllocator = allocate_on_heap,
    ) -> tuple[torch.Tensor]:
        """Raise ValueError: these formats come from checkpoints only. See Format."""
        raise ValueError(f"{self.name} is what checkpoints come in; penstock does not quantise to it")

    def join(self, parts: Sequence[torch.Tensor], n: int, k: int) -> torch.Tensor:
        """Join ``parts`` of the matrix [n, k], in any dtype, unchanged to a plane, uint8 [length]."""
        plane = torch.zeros(*self.lengths(n, k), dtype=torch.uint8)
        for into, part in zip(self.split(plane, n, k), parts, strict=True):
            into.copy_(part.contiguous().view(-1).view(torch.uint8).view(into.shape))
        return plane

    def split(self, plane: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, ...]:
        """Return the parts of a plane, uint8 [lines, width] each, as views."""
        parts = self.parts(n, k)
        return tuple(
            plane[at : at + part.lines * part.width].view(part.lines, part.width)
            for part, at in zip(parts, _offsets(parts), strict=True)
        )

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` with rows of the matrix. See Format."""
        check_decode(self, planes, n, k, rows, out)
        (plane,) = planes
        if KERNELS is not None and out.dtype in _DTYPES:
            addresses = plane.data_ptr(), rows.start, len(out), k, out.data_ptr()
            kernel, shape, dtype = KERNELS.decode_blocks, self._shape(n, k), _DTYPES[out.dtype]
            with_team(torch.get_num_threads(), lambda threads: kernel(shape, *addresses, dtype, threads))
        else:
            self._decode_portably(self.split(plane, n, k), n, k, rows, out)

    def find_fault(
        self, plane: int, n: int, k: int, length: int, read: Window, at_once: int | None = None
    ) -> str | None:
        """Return None: any bytes are a matrix, unless a subclass says otherwise. See Format."""
        return None

    def find_product(self, rows: int, n: int, k: int) -> Product | None:
        """Return the product of blocks.h for up to MOST_ROWS rows. See Format."""
        if KERNELS is None or not 1 <= rows <= MOST_ROWS:
            return None
        return make_product(KERNELS.block_products, rows, n, k, self._shape(n, k), room=4 * rows * (k + k // 16))

    def locate_part(self, part: int, n: int, k: int) -> tuple[int, int]:
        """Return where a part, -1 for the last, begins in a plane, and its bytes."""
        parts = self.parts(n, k)
        return _offsets(parts)[part], parts[part].lines * parts[part].width

    def _decode_portably(self, parts: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        tables = [part for part in zip(parts, self.parts(n, k), strict=True) if part[1].rows]
        for start in range(0, len(out), _AT_ONCE):
            into = out[start : start + _AT_ONCE]
            numbers = torch.arange(rows.start + start, rows.start + start + len(into))
            made = self.numbers([table[numbers // part.rows] for table, part in tables], k)
            if not self.ordered:
                into.copy_(made)
                continue
            order = parts[-1].view(torch.int32)[0].long()
            there = (order >= 0) & (order < k)  # all of them in a plane that was checked
            into[:, order[there]] = made[:, there].to(into.dtype)

    def _shape(self, n: int, k: int) -> "ctypes.Array[ctypes.c_int64]":
        """Build the ``struct shape`` of blocks.h."""
        parts = self.parts(n, k)
        tables = [(at, part) for at, part in zip(_offsets(parts), parts, strict=True) if part.rows]
        filled = tables + [(0, PlanePart(0, 0))] * (3 - len(tables))
        each = max(part.rows for _, part in tables)
        order = _offsets(parts)[-1] if self.ordered else 0
        numbers = [
            self.kind,
            *(at for at, _ in filled),
            *(part.width for _, part in filled),
            each,
            self.group or k,
            order,
        ]
        return (ctypes.c_int64 * len(numbers))(*numbers)


def count_blocks(name: str, k: int, multiple: int) -> int:
    """Return the number of blocks of ``multiple`` columns in ``k``. Raises UnsuitableShape for a fraction."""
    if k % multiple or not k:
        raise UnsuitableShape(f"{name} needs a multiple of {multiple} columns, not {k}")
    return k // multiple


def _offsets(parts: Sequence[PlanePart]) -> list[int]:
    offsets, end = [], 0
    for part in parts:
        offsets.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
        end = offsets[-1] + part.lines * part.width
    return offsets


_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
