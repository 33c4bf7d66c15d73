"""int4: integers of 4 bits, with a scale and a zero for each group of 32, 64 or 128 columns of a row.

The compiled half is kernels/csrc/formats/int4.h. The layout is one on all processors:

    plane: blocks of 64 rows, uint8 [n / 64, k, 32]: byte d of column j has row d in its lower half, row d + 32 in its
           upper half, as number + 8; then bfloat16 [k / group, n, 2]: scale and zero
    a weight is number * scale + zero, number -8 to 7.

n is padded to a multiple of 64, k to a multiple of the group.
"""

from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional

from ..calls import make_product
from ..native import KERNELS
from .base import SLAB, PlaneAllocator, Product, UnsuitableShape, Window, allocate_on_heap
from .planes import check_decode
from .quantise import quantise_groups, split_tiles

MOST_ROWS = 48
"""The most rows for which our product is faster than decoding and a plain product."""
_BLOCK = 64
_HALF = _BLOCK // 2  # bytes of a column in a block


class Int4:
    """Format ``int4``. ``group`` is the number of columns that share a scale and a zero: 32, 64 or 128."""

    exact = False
    planes = 1
    any_bytes = True

    def __init__(self, group: int) -> None:
        self.name = f"int4-{group}"
        self.group = group

    def lengths(self, n: int, k: int) -> tuple[int, ...]:
        """Return the bytes of the plane. See Format.

        Raises UnsuitableShape if the padding makes it no smaller than bfloat16.
        """
        high, wide = self._whole(n, k)
        length = high * wide // 2 + high * wide // self.group * 4
        if length >= 2 * n * k:
            raise UnsuitableShape(f"{self.name} stores no matrix [{n}, {k}] in less than bfloat16 takes")
        return (length,)

    def encode(
        self,
        slabs: Iterable[torch.Tensor],
        n: int,
        k: int,
        importance: torch.Tensor | None = None,
        room: PlaneAllocator = allocate_on_heap,
    ) -> tuple[torch.Tensor, ...]:
        """Encode with ``quantise_groups``. See Format."""
        (length,) = self.lengths(n, k)
        plane = room(length)
        packed, scales_and_zeros = self.parts(plane, n, k)
        scales_and_zeros[:, n:] = 0
        for first, tile in split_tiles(slabs):
            numbers, scales, zeros = quantise_groups(tile, self.group, importance)
            packed[first // _BLOCK] = _packed(numbers)
            place = slice(first, first + len(tile))
            scales_and_zeros[:, place, 0], scales_and_zeros[:, place, 1] = scales.T, zeros.T
        return (plane,)

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` with rows of the matrix. See Format."""
        check_decode(self, planes, n, k, rows, out)
        (plane,) = planes
        if KERNELS is not None and out.dtype == torch.bfloat16:
            KERNELS.decode_int4(
                plane.data_ptr(), out.data_ptr(), n, k, self.group, rows.start, len(out), torch.get_num_threads()
            )
            return
        packed, scales_and_zeros = self.parts(plane, n, k)
        dtype = torch.promote_types(out.dtype, torch.float32)
        for first in range(0, len(out), SLAB):
            block = (rows.start + first) // _BLOCK
            scales, zeros = scales_and_zeros[:, block * _BLOCK : (block + 1) * _BLOCK].to(dtype).permute(2, 1, 0)
            numbers = _unpacked(packed[block]).reshape(_BLOCK, -1, self.group).to(dtype)
            weights = numbers.sub_(8).mul_(scales[..., None]).add_(zeros[..., None]).flatten(1)
            tile = out[first : first + SLAB]
            tile.copy_(weights[: len(tile), :k])

    def find_fault(self, plane: int, n: int, k: int, length: int, read: Window, at_once: int | None = None) -> None:
        """Return None: any bytes are a matrix. See Format."""

    def find_product(self, rows: int, n: int, k: int) -> Product | None:
        """Return the product of int4.h for up to MOST_ROWS rows. See Format."""
        if KERNELS is None or rows > MOST_ROWS:
            return None
        groups = -(-k // self.group)
        room = 4 * rows * groups * (self.group + 1)
        return make_product(KERNELS.products_int4, rows, n, k, self.group, room=room)

    def parts(self, plane: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """View the numbers, uint8 [blocks, columns, 32], and the scales and zeros, bfloat16 [groups, rows, 2]."""
        high, wide = self._whole(n, k)
        at = high * wide // 2
        return (
            plane[:at].view(high // _BLOCK, wide, _HALF),
            plane[at:].view(torch.bfloat16).view(wide // self.group, high, 2),
        )

    def _whole(self, n: int, k: int) -> tuple[int, int]:
        return -(-n // _BLOCK) * _BLOCK, -(-k // self.group) * self.group


def _packed(numbers: torch.Tensor) -> torch.Tensor:
    """Pack up to 64 rows of ``numbers`` [r, k], uint8, to [k, 32]. Missing rows are 8, which encodes 0."""
    whole = functional.pad(numbers, (0, 0, 0, _BLOCK - len(numbers)), value=8)
    return (whole[:_HALF] | whole[_HALF:] << 4).T


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    """Unpack to [64, k], the inverse of ``_packed``."""
    return torch.cat([packed & 15, packed >> 4], dim=1).T
