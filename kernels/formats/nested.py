"""Bit-nested weights: the numbers of format ``int8`` in planes, the first of which is a 4-bit or 2-bit matrix.

Idea: "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving", and "Matryoshka
Quantization". How an 8-bit number comes to be a code of four bits and four bits that are left: ``steps.py``. Two formats:

    nested     codes (4 bits) with all else | what is left (4 bits)
    stacked    upper bits of the codes (2) with all else | lower bits of the codes (2) | what is left (4)

The planes of ``stacked`` up to the second are the numbers of the first of ``nested``, and all of either are those of
``int8``. The matrix is stored in tiles of 16 rows, each plane a run of tiles, filled up with zeros at the end:

    tile of the first plane     head | codes      of others: codes
    head                        16 scales, bfloat16; per group 16 steps, uint8, and 16 offsets, int8; if stacked, per
                                group 16 levels of 4 bits (row i and i + 8 in byte i); filled up to a multiple of 64
    codes                       registers of 64 bytes, of 8 columns (4 bits) or 16 (2 bits): a word of 32 bits per row,
                                even columns in its lower half and odd ones in its upper, from the lowest bits on

What is left is stored with 8 added. kernels/nested.c multiplies by such matrices.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..calls import multiply
from ..native import LIBRARY
from .base import SLAB, Product
from .steps import GROUP, LEFT, UNIT, line, nearest, nest

MOST_ROWS = 8
"""Of inputs, up to which products with the planes are faster than decoding them."""

_TILE = 16
_REGISTER = 64


class BitNested:
    """A format of nested planes, see above."""

    exact = False

    def __init__(self, name: str, *, split: bool) -> None:
        """``split``: the codes are in two planes, of two bits each."""
        self.name = name
        self.planes = 3 if split else 2
        self._split = split

    def lengths(self, n: int, k: int) -> tuple[int, ...]:
        shape = _Shape(n, k, self._split)
        return tuple(shape.tiles * length for length in shape.tile_lengths)

    def encode(
        self, slabs: Iterable[torch.Tensor], n: int, k: int, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        shape = _Shape(n, k, self._split)
        planes = tuple(torch.empty(length, dtype=torch.uint8) for length in self.lengths(n, k))
        first = 0
        for slab in slabs:
            for rows in slab.split(SLAB):
                tiles = slice(first // _TILE, -(-(first + len(rows)) // _TILE))
                for plane, length, part in zip(
                    planes, shape.tile_lengths, shape.encoded(rows, importance), strict=True
                ):
                    plane.view(-1, length)[tiles] = part
                first += len(rows)
        return planes

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        shape = _Shape(n, k, self._split)
        tiles = slice(rows.start // _TILE, -(-rows.stop // _TILE))
        parts = [plane.view(-1, length)[tiles] for plane, length in zip(planes, shape.tile_lengths, strict=False)]
        out.copy_(shape.decoded(parts)[: rows.stop - rows.start])

    def products(self, rows: int, n: int, k: int) -> Product | None:
        if LIBRARY is None or rows > MOST_ROWS:
            return None
        return _Product(rows, n, k, planes=self.planes)


NESTED = BitNested("nested", split=False)
STACKED = BitNested("stacked", split=True)


class _Product:
    """The products of penstock_nested; a call may have matrices with different numbers of planes."""

    def __init__(self, rows: int, n: int, k: int, *, planes: int) -> None:
        self._rows, self._n, self._k, self._planes = rows, n, k, planes
        self._room = -(-k // GROUP) * rows * (GROUP * 2 + 4)
        self._threads = torch.get_num_threads()

    def __call__(self, matrices: Sequence[Sequence[int]], inputs: Sequence[int]) -> torch.Tensor:
        assert LIBRARY is not None
        room = torch.empty(len(inputs) * self._room, dtype=torch.uint8)
        return multiply(
            LIBRARY.penstock_nested,
            [address for planes in matrices for address in (*planes, *[0] * (self._planes - len(planes)))],
            inputs,
            self._rows,
            self._n,
            self._k,
            self._planes,
            room.data_ptr(),
            threads=self._threads,
        )


@dataclass(frozen=True)
class _Shape:
    """Where the numbers of a matrix [n, k] lie in its planes."""

    n: int
    k: int
    split: bool

    @property
    def tiles(self) -> int:
        return -(-self.n // _TILE)

    @property
    def groups(self) -> int:
        return -(-self.k // GROUP)

    @property
    def _head(self) -> int:
        levels = self.groups * _TILE // 2 if self.split else 0
        return -(-(2 * _TILE * (self.groups + 1) + levels) // _REGISTER) * _REGISTER

    @property
    def tile_lengths(self) -> tuple[int, ...]:
        """Bytes of a tile of each plane."""
        if not self.split:
            codes = -(-self.k // 8) * _REGISTER
            return self._head + codes, codes
        codes = -(-self.k // 16) * _REGISTER
        return self._head + codes, codes, 2 * codes

    def encoded(self, weights: torch.Tensor, importance: torch.Tensor | None) -> list[torch.Tensor]:
        """Tiles [t, length] of each plane, of some rows of the matrix."""
        weights = weights.float()
        integers, scales = rows_of_integers(weights, importance)
        inverse = torch.where(scales > 0, 1 / scales.float(), 0)
        numbers = nest(weights * inverse.unsqueeze(1), integers, importance)

        tiles = -(-len(weights) // _TILE)
        head = torch.zeros(tiles, self._head, dtype=torch.uint8)
        head[:, : 2 * _TILE] = _tiled(scales.unsqueeze(1)).view(torch.uint8).view(tiles, -1)
        ends = 2 * _TILE, 2 * _TILE * (self.groups + 1)
        pairs = head[:, ends[0] : ends[1]].view(tiles, self.groups, 2, _TILE)
        pairs[:, :, 0] = _tiled(numbers.steps.byte()).transpose(1, 2)
        pairs[:, :, 1] = _tiled(numbers.offsets.char().view(torch.uint8)).transpose(1, 2)
        codes, left = _by_tile(numbers.codes), _by_tile(numbers.left + LEFT)
        if not self.split:
            planes = [_registers(codes, 4), _registers(left, 4)]
        else:
            levels = _tiled(numbers.levels.byte()).transpose(1, 2)
            packed = levels[:, :, : _TILE // 2] | levels[:, :, _TILE // 2 :] << 4
            head[:, ends[1] : ends[1] + packed[0].numel()] = packed.reshape(tiles, -1)
            planes = [_registers(codes >> 2, 2), _registers(codes & 3, 2), _registers(left, 4)]
        lengths = self.tile_lengths
        first = torch.cat((head, planes[0][:, : lengths[0] - self._head]), 1)
        return [first, *(plane[:, :length] for plane, length in zip(planes[1:], lengths[1:], strict=True))]

    def decoded(self, planes: Sequence[torch.Tensor]) -> torch.Tensor:
        """[16 * t, k], float32, of tiles [t, length] of the first planes or all."""
        tiles = len(planes[0])
        head = planes[0][:, : self._head]
        scales = head[:, : 2 * _TILE].contiguous().view(torch.bfloat16).float().view(-1, 1)
        end = 2 * _TILE * (self.groups + 1)
        pairs = head[:, 2 * _TILE : end].reshape(tiles, self.groups, 2, _TILE)
        steps = pairs[:, :, 0].transpose(1, 2).reshape(-1, self.groups, 1).float()
        offsets = pairs[:, :, 1].view(torch.int8).transpose(1, 2).reshape(-1, self.groups, 1).float()
        codes = self._codes(planes[0][:, self._head :], 2 if self.split else 4)
        if self.split and len(planes) == 1:
            packed = head[:, end : end + self.groups * _TILE // 2].reshape(tiles, self.groups, -1)
            levels = torch.cat((packed & 15, packed >> 4), 2).transpose(1, 2).reshape(-1, self.groups, 1).float()
            centre, spread = line(levels)
            codes = centre + spread * (codes - 1.5)
        elif self.split:
            codes = 4 * codes + self._codes(planes[1], 2)
        if len(planes) == (3 if self.split else 2):
            numbers = nearest(steps, codes) + offsets + self._codes(planes[-1], 4) - LEFT
        else:
            numbers = steps / UNIT * codes + offsets
        return numbers.flatten(1)[:, : self.k] * scales

    def _codes(self, registers: torch.Tensor, bits: int) -> torch.Tensor:
        """[16 * t, G, GROUP], float32, of [t, bytes]; zeros past the last register."""
        size = self.groups * GROUP * _TILE * bits // 8
        whole = functional.pad(registers, (0, size - registers.shape[1])).view(
            len(registers), self.groups, GROUP * bits // 32, _TILE, 2, 2
        )  # tile, group, register, row, half word, byte
        parts = [(whole >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        return torch.stack(parts, 6).permute(0, 3, 1, 2, 5, 6, 4).reshape(-1, self.groups, GROUP).float()


def rows_of_integers(weights: torch.Tensor, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    if not bool(torch.isfinite(weights).all()):
        raise ValueError("some numbers are not finite")
    scales = (weights.abs().amax(1) / 127).bfloat16()
    inverse = torch.where(scales > 0, 1 / scales.float(), 0)
    return (weights * inverse.unsqueeze(1)).round_().clamp_(-127, 127), scales


def _tiled(numbers: torch.Tensor) -> torch.Tensor:
    """[t, 16, ...] of [rows, ...], with zeros at the end."""
    missing = -len(numbers) % _TILE
    if missing:
        numbers = torch.cat((numbers, numbers.new_zeros(missing, *numbers.shape[1:])))
    return numbers.view(-1, _TILE, *numbers.shape[1:])


def _by_tile(codes: torch.Tensor) -> torch.Tensor:
    """[GROUP, t, 16, G] uint8 of [GROUP, rows, G]."""
    return functional.pad(codes.byte(), (0, 0, 0, -codes.shape[1] % _TILE)).unflatten(1, (-1, _TILE))


def _registers(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[t, bytes] of codes [GROUP, t, 16, G]."""
    _, tiles, rows, groups = codes.shape
    columns = codes.view(GROUP * bits // 32, 2, 8 // bits, 2, tiles, rows, groups)  # register, byte, part, half word
    packed = columns[:, :, 0].clone()
    for part in range(1, 8 // bits):
        packed |= columns[:, :, part] << bits * part
    return packed.permute(3, 5, 0, 4, 2, 1).reshape(tiles, -1)
