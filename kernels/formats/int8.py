"""int8: integers of 8 bits, with a scale for each row.

plane: int8 [n, k], padded to a multiple of 64 bytes, then scales, bfloat16 [n]; a weight is number * scale.

The compiled half is kernels/csrc/formats/int8.h.
"""

from collections.abc import Iterable, Sequence

import torch

from ..calls import make_product
from ..native import KERNELS
from .base import PlaneAllocator, Product, Window, allocate_on_heap
from .planes import check_decode
from .quantise import quantise_rows, split_tiles

MOST_ROWS = 48
"""The most rows for which our product is faster than decoding and a plain product."""


class Int8:
    """Format ``int8``: one scale per row."""

    name = "int8"
    exact = False
    planes = 1
    any_bytes = True

    def lengths(self, n: int, k: int) -> tuple[int, ...]:
        """Return the bytes of the plane. See Format."""
        return (locate_scales(n, k) + 2 * n,)

    def encode(
        self,
        slabs: Iterable[torch.Tensor],
        n: int,
        k: int,
        importance: torch.Tensor | None = None,
        room: PlaneAllocator = allocate_on_heap,
    ) -> tuple[torch.Tensor, ...]:
        """Encode with ``quantise_rows``. See Format."""
        (length,) = self.lengths(n, k)
        plane = room(length)
        plane[n * k : locate_scales(n, k)] = 0
        numbers, scales = view_parts(plane, n, k)
        for first, tile in split_tiles(slabs):
            place = slice(first, first + len(tile))
            numbers[place], scales[place] = quantise_rows(tile, importance)
        return (plane,)

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` with rows of the matrix. See Format."""
        check_decode(self, planes, n, k, rows, out)
        (plane,) = planes
        if KERNELS is not None and out.dtype == torch.bfloat16:
            KERNELS.decode_int8(plane.data_ptr(), out.data_ptr(), n, k, rows.start, len(out), torch.get_num_threads())
            return
        numbers, scales = view_parts(plane, n, k)
        out.copy_(numbers[rows] * scales[rows, None].to(torch.promote_types(out.dtype, torch.float32)))

    def find_fault(self, plane: int, n: int, k: int, length: int, read: Window, at_once: int | None = None) -> None:
        """Return None: any bytes are a matrix. See Format."""

    def find_product(self, rows: int, n: int, k: int) -> Product | None:
        """Return the product of int8.h for up to MOST_ROWS rows. See Format."""
        if KERNELS is None or rows > MOST_ROWS:
            return None
        return make_product(KERNELS.products_int8, rows, n, k, room=4 * rows * (-(-k // 32) * 32))


def view_parts(plane: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """View the numbers, int8 [n, k], and the scales, bfloat16 [n], in a plane."""
    at = locate_scales(n, k)
    return plane[: n * k].view(torch.int8).view(n, k), plane[at : at + 2 * n].view(torch.bfloat16)


def locate_scales(n: int, k: int) -> int:
    """Return the offset in bytes of the scales in a plane."""
    return -(-n * k // 64) * 64
