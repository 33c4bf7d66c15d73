"""Bit-nested weights: the numbers of format ``int8`` in planes. The first plane alone is a 4-bit or 2-bit matrix.

Idea: "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving", and "Matryoshka
Quantization". ``steps.py`` divides an 8-bit number into a code of four bits and a rest of four bits. Two formats:

    nested     codes (4 bits) with heads | rests (4 bits)
    stacked    upper bits of the codes (2) with heads | lower bits of the codes (2) | rests (4)

The first two planes of ``stacked`` have the numbers of the first plane of ``nested``. All planes of either have
those of ``int8``. The matrix is stored in tiles of 16 rows. Each plane is a run of tiles, padded with zeros at the end:

    tile of the first plane     head | codes      of other planes: codes
    head                        16 scales, bfloat16; per group 16 steps, uint8, and 16 offsets, int8; if stacked, per
                                group 16 levels of 4 bits (row i and i + 8 in byte i); padded to a multiple of 64
    codes                       registers of 64 bytes, of 8 columns (4 bits) or 16 (2 bits): a word of 32 bits per row,
                                even columns in its lower half and odd ones in its upper, from the lowest bits on

Rests are stored with 8 added. kernels/csrc/formats/nested.h multiplies by such matrices, nest.h makes them.
"""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..calls import make_product
from ..native import KERNELS
from .base import PlaneAllocator, Product, Window, allocate_on_heap
from .planes import check_decode
from .quantise import quantise_rows, split_tiles
from .steps import GROUP, LEFT, UNIT, decode_levels, nest, pad_column_weights, scale_codes

MOST_ROWS = 16
"""The most rows of inputs for which products with the planes are faster than decoding them."""

TILE = 16
"""Rows of a tile."""
_REGISTER = 64


class BitNested:
    """A format of nested planes. The module describes the layout."""

    exact = False
    any_bytes = True

    def __init__(self, name: str, *, split: bool) -> None:
        """``split``: the codes are in two planes, of two bits each."""
        self.name = name
        self.planes = 3 if split else 2
        self._split = split

    def lengths(self, n: int, k: int) -> tuple[int, ...]:
        """Return the bytes of each plane. See Format."""
        shape = _Shape(n, k, self._split)
        return tuple(shape.tiles * length for length in shape.tile_lengths)

    def encode(
        self,
        slabs: Iterable[torch.Tensor],
        n: int,
        k: int,
        importance: torch.Tensor | None = None,
        room: PlaneAllocator = allocate_on_heap,
    ) -> tuple[torch.Tensor, ...]:
        """Encode by nest.h, or by torch with the same bits. See Format."""
        shape = _Shape(n, k, self._split)
        planes = tuple(room(length) for length in self.lengths(n, k))
        if KERNELS is not None:
            self._nest(slabs, shape, importance, planes)
            return planes
        for first, rows in split_tiles(slabs):
            for plane, part in zip(planes, shape.encoded(rows, importance), strict=True):
                plane.view(shape.tiles, -1)[_tiles_of(first, rows)] = part
        return planes

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` with rows of the matrix from the planes given. See Format."""
        check_decode(self, planes, n, k, rows, out)
        if KERNELS is not None and out.dtype == torch.bfloat16:
            addresses = (ctypes.c_uint64 * self.planes)(*(plane.data_ptr() for plane in planes))
            threads = torch.get_num_threads()
            KERNELS.decode_nested(addresses, out.data_ptr(), k, self.planes, rows.start, len(out), threads)
            return
        shape = _Shape(n, k, self._split)
        place = slice(rows.start // TILE, -(-rows.stop // TILE))
        parts = [plane.view(shape.tiles, -1)[place] for plane in planes]
        out.copy_(shape.decoded(parts)[: rows.stop - rows.start])

    def _nest(
        self,
        slabs: Iterable[torch.Tensor],
        shape: "_Shape",
        importance: torch.Tensor | None,
        planes: Sequence[torch.Tensor],
    ) -> None:
        """Fill ``planes`` with nest.h."""
        assert KERNELS is not None
        addresses = (ctypes.c_uint64 * self.planes)(*(plane.data_ptr() for plane in planes))
        counts = pad_column_weights(shape.k, importance)
        for first, rows in split_tiles(slabs):
            for plane in planes:  # nest.h does not write the padding
                plane.view(shape.tiles, -1)[_tiles_of(first, rows)] = 0
            weights = rows.float().contiguous()
            integers, scales = quantise_rows(weights, importance)
            KERNELS.nest(
                *(part.data_ptr() for part in (weights, integers, scales, counts)),
                addresses,
                len(weights),
                shape.k,
                first // TILE,
                self.planes,
                torch.get_num_threads(),
            )

    def find_fault(self, plane: int, n: int, k: int, length: int, read: Window, at_once: int | None = None) -> None:
        """Return None: any bytes are a matrix. See Format."""

    def find_product(self, rows: int, n: int, k: int) -> Product | None:
        """Return the product of nested.h for up to MOST_ROWS rows. See Format.

        The matrices of a call may have different numbers of planes.
        """
        if KERNELS is None or rows > MOST_ROWS:
            return None
        room = 4 * rows * -(-k // GROUP) * (GROUP + 1)
        return make_product(KERNELS.products_nested, rows, n, k, self.planes, planes=self.planes, room=room)


NESTED = BitNested("nested", split=False)
STACKED = BitNested("stacked", split=True)


@dataclass(frozen=True)
class _Shape:
    """Positions of the numbers of a matrix [n, k] in its planes."""

    n: int
    k: int
    split: bool

    @property
    def tiles(self) -> int:
        return -(-self.n // TILE)

    @property
    def groups(self) -> int:
        return -(-self.k // GROUP)

    @property
    def _head(self) -> int:
        levels = self.groups * TILE // 2 if self.split else 0
        return -(-(2 * TILE * (self.groups + 1) + levels) // _REGISTER) * _REGISTER

    @property
    def tile_lengths(self) -> tuple[int, ...]:
        """Return the bytes of a tile of each plane."""
        if not self.split:
            codes = -(-self.k // 8) * _REGISTER
            return self._head + codes, codes
        codes = -(-self.k // 16) * _REGISTER
        return self._head + codes, codes, 2 * codes

    def encoded(self, weights: torch.Tensor, importance: torch.Tensor | None) -> list[torch.Tensor]:
        """Encode some rows of the matrix to tiles [t, length] of each plane."""
        weights = weights.float()
        integers, scales = quantise_rows(weights, importance)
        numbers = nest(weights, integers.float(), scales.float(), importance, leveled=self.split)

        high = -(-len(weights) // TILE)
        head = torch.zeros(high, self._head, dtype=torch.uint8)
        head[:, : 2 * TILE] = _tiled(scales.unsqueeze(1)).view(torch.uint8).view(high, -1)
        end = 2 * TILE * (self.groups + 1)
        pairs = head[:, 2 * TILE : end].view(high, self.groups, 2, TILE)
        pairs[:, :, 0] = _tiled(numbers.steps.byte()).transpose(1, 2)
        pairs[:, :, 1] = _tiled(numbers.offsets.char().view(torch.uint8)).transpose(1, 2)
        left = _registers(numbers.left + LEFT, 4)
        if not self.split:
            planes = [_registers(numbers.codes, 4), left]
        else:
            assert numbers.levels is not None
            levels = _tiled(numbers.levels.byte()).transpose(1, 2)
            packed = levels[:, :, : TILE // 2] | levels[:, :, TILE // 2 :] << 4
            head[:, end : end + packed[0].numel()] = packed.reshape(high, -1)
            upper = (numbers.codes / 4).floor_()
            planes = [_registers(upper, 2), _registers(numbers.codes - 4 * upper, 2), left]
        lengths = self.tile_lengths
        first = torch.cat((head, planes[0][:, : lengths[0] - self._head]), 1)
        return [first, *(plane[:, :length] for plane, length in zip(planes[1:], lengths[1:], strict=True))]

    def decoded(self, planes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Decode tiles [t, length] of the first planes, or all, to float32 [16 * t, k]."""
        high = len(planes[0])
        head = planes[0][:, : self._head]
        scales = head[:, : 2 * TILE].contiguous().view(torch.bfloat16).float().view(-1, 1)
        end = 2 * TILE * (self.groups + 1)
        pairs = head[:, 2 * TILE : end].reshape(high, self.groups, 2, TILE)
        steps = pairs[:, :, 0].transpose(1, 2).reshape(-1, self.groups, 1).float()
        offsets = pairs[:, :, 1].view(torch.int8).transpose(1, 2).reshape(-1, self.groups, 1).float()
        codes = self._codes(planes[0][:, self._head :], 2 if self.split else 4)
        if self.split and len(planes) == 1:
            packed = head[:, end : end + self.groups * TILE // 2].reshape(high, self.groups, -1)
            levels = torch.cat((packed & 15, packed >> 4), 2).transpose(1, 2).reshape(-1, self.groups, 1).float()
            centre, spread = decode_levels(levels)
            codes = centre + spread * (codes - 1.5)
        elif self.split:
            codes = 4 * codes + self._codes(planes[1], 2)
        if len(planes) == (3 if self.split else 2):
            numbers = scale_codes(steps, codes) + offsets + self._codes(planes[-1], 4) - LEFT
        else:
            numbers = steps / UNIT * codes + offsets
        return numbers.flatten(1)[:, : self.k] * scales

    def _codes(self, registers: torch.Tensor, bits: int) -> torch.Tensor:
        """Unpack [t, bytes] to float32 [16 * t, G, GROUP], with zeros past the last register."""
        size = self.groups * GROUP * TILE * bits // 8
        whole = functional.pad(registers, (0, size - registers.shape[1])).view(
            len(registers), self.groups, GROUP * bits // 32, TILE, 2, 2
        )  # tile, group, register, row, half word, byte
        parts = [(whole >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        return torch.stack(parts, 6).permute(0, 3, 1, 2, 5, 6, 4).reshape(-1, self.groups, GROUP).float()


def _tiles_of(first: int, rows: torch.Tensor) -> slice:
    """Return the tiles of some rows of a matrix that begin at its row ``first``."""
    return slice(first // TILE, -(-(first + len(rows)) // TILE))


def _tiled(numbers: torch.Tensor) -> torch.Tensor:
    """Divide [rows, ...] into [t, 16, ...], with zeros at the end."""
    missing = -len(numbers) % TILE
    if missing:
        numbers = torch.cat((numbers, numbers.new_zeros(missing, *numbers.shape[1:])))
    return numbers.view(-1, TILE, *numbers.shape[1:])


def _registers(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes [GROUP, rows, G], float32, to [t, bytes]."""
    _, rows, groups = codes.shape
    pairs = 16 // bits
    powers = torch.tensor([float(1 << bits * place) for place in range(pairs)])
    halves = torch.matmul(powers, codes.view(-1, pairs, 2 * rows * groups)).to(torch.int32)  # sums below 1 << 16
    lower, upper = halves.view(-1, 2, rows, groups).unbind(1)
    words = functional.pad(lower | upper << 16, (0, 0, 0, -rows % TILE))
    return words.view(len(words), -1, TILE, groups).permute(1, 3, 0, 2).contiguous().view(torch.uint8).flatten(1)
