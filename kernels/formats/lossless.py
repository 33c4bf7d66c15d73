"""The format "lossless": bfloat16 matrices in two thirds of their bytes, decoded to exactly the same bits.

The exponents of weights are far from evenly spread: they have 2.6 bits of entropy in 8 bits. The format codes them, and
keeps sign and mantissa unchanged. The idea is that of "70% Size, 100% Accuracy: Lossless LLM Compression for Efficient
GPU Inference via Dynamic-Length Float" (DFloat11). Its Huffman codes are read bit by bit, which suits a GPU. Our codes
are made for registers: three levels of two bits, each for the exponents without a code in the level before.

Gaussian weights take 66.8 % of their bytes, where their entropy is 65.9 %. One core decodes 18 GB/s of them (31 GB/s
into registers only). Codes of three bits followed by a level of four were decoded 1.4 times as fast, but take 69.3 %.
zstd on the exponents alone takes 68 %, at 2 GB/s.

kernels/csrc/formats/lossless.h describes the layout, decodes and multiplies (11 GB/s a core with AVX2, 2 GB/s in plain
C). lossless_tiles.py decodes where nothing was compiled (0.2 GB/s).
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from ..calls import list_addresses, multiply
from ..native import COMPILED, KERNELS, RUNS
from ..products.few_rows import Products, find_product
from .base import BiasedProduct, PlaneAllocator, UnsuitableShape, Window, allocate_on_heap
from .lossless_tiles import ROWS, decode_tile, encode_tile, least_tile
from .planes import check_decode


class Lossless:
    """Format ``lossless``: tiles of sixteen rows.

    A matrix that gains nothing takes a thousandth more bytes than plain.
    """

    name = "lossless"
    exact = True
    planes = 1
    any_bytes = False

    def lengths(self, n: int, k: int) -> None:
        """Return None: the length depends on the numbers.

        Raises UnsuitableShape for fewer than 16 rows, or if k is not a multiple of 4.
        """
        if n < ROWS or k < 1 or k % 4:
            raise UnsuitableShape(f"lossless takes {ROWS} rows or more of 4, 8, 12, .. columns, not [{n}, {k}]")

    def length_range(self, n: int, k: int) -> tuple[int, int]:
        """Return the least and the most bytes of the plane of a matrix [n, k]. See VaryingLengths."""
        self.lengths(n, k)
        tiles, rest = n // ROWS, 2 * (n % ROWS) * k
        return tiles * (8 + least_tile(k)) + rest, 8 * tiles + 2 * n * k

    def find_lengths(self, slabs: Iterable[torch.Tensor], n: int, k: int) -> tuple[int]:
        """Return the bytes of the plane that ``encode`` would make. See VaryingLengths. Raises as ``encode``."""
        self.lengths(n, k)
        length = 8 * (n // ROWS) + 2 * (n % ROWS) * k
        for slab in slabs:
            _check_dtype(slab)
            whole = len(slab) // ROWS
            length += int(_find_tile_lengths(slab[: whole * ROWS].contiguous()).sum())
        return (length,)

    def encode(
        self,
        slabs: Iterable[torch.Tensor],
        n: int,
        k: int,
        importance: torch.Tensor | None = None,
        room: PlaneAllocator = allocate_on_heap,
    ) -> tuple[torch.Tensor, ...]:
        """Encode bfloat16 slabs. See Format. Raises UnsuitableShape for any other dtype. Any bits are valid, also NaNs.

        The result is the beginning of a buffer as large as the matrix. The rest of the buffer is never touched.
        """
        self.lengths(n, k)
        tiles = n // ROWS
        plane = room(8 * tiles + 2 * n * k)
        at, row = 8 * tiles, 0
        ends = torch.empty(tiles, dtype=torch.int64)
        for slab in slabs:
            _check_dtype(slab)
            whole = len(slab) // ROWS
            lengths = _encode(slab[: whole * ROWS].contiguous(), plane[at:])
            ends[row : row + whole] = at + lengths.cumsum(0)
            at, row = int(at + lengths.sum()), row + whole
            rest = slab[whole * ROWS :].contiguous().view(torch.uint8).flatten()
            plane[at : at + len(rest)] = rest
            at += len(rest)
        plane[: 8 * tiles] = ends.view(torch.uint8)
        return (plane[:at],)

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out``, bfloat16, with rows of the matrix. See Format.

        Raises ValueError also if the plane is damaged, which ``find_fault`` would have told.
        """
        check_decode(self, planes, n, k, rows, out)
        (plane,) = planes
        first, count = rows.start, rows.stop - rows.start
        if KERNELS is None:
            right = _decode(plane, n, k, first, out)
        else:
            right = KERNELS.lossless_decode(
                plane.data_ptr(), len(plane), n, k, first, count, out.data_ptr(), torch.get_num_threads()
            )
        if not right:
            raise _damaged(n, k)

    def find_fault(
        self, plane: int, n: int, k: int, length: int, read: Window, at_once: int | None = None
    ) -> str | None:
        """Return a fault if tiles do not lie one behind the other, or if one does not hold what it says. See Format."""
        tiles = n // ROWS
        stop = length - 2 * (n % ROWS) * k
        if at_once is None or length <= at_once:
            whole = read(0, length)
            return _tell(0, _find_damaged(whole[8 * tiles : stop], 8 * tiles, whole[: 8 * tiles], k))
        ends = read(0, 8 * tiles).clone()
        bounds = np.concatenate((np.array([8 * tiles]), np.frombuffer(ends.numpy(), np.int64)))
        first = 0
        while first < tiles:
            start = int(bounds[first])
            past = first + 1  # at least one tile, of which find_damaged tells if it is none
            while past < tiles and start <= bounds[past + 1] <= start + at_once:
                past += 1
            end = int(bounds[past])
            if not start <= end <= min(stop, start + max(at_once, 2 * ROWS * k)):
                return _tell(first, past - 1 - first)
            fault = _tell(first, _find_damaged(read(start, end - start), start, ends[8 * first : 8 * past], k))
            if fault is not None:
                return fault
            first = past
        return None

    def find_product(self, rows: int, n: int, k: int, *, biased: bool = False) -> BiasedProduct | None:
        """Return the product with the bits of ``functional.linear`` on the decoded matrix. See ExactFormat.

        The product raises ValueError if a matrix is damaged, which ``find_fault`` would have told.
        """
        if KERNELS is None or n < ROWS or k % 4:
            return None
        found = find_product(rows, n, k, biased=biased)
        return None if found is None else _LosslessProduct(found)


class _LosslessProduct:
    """The product ``plain`` with matrices that are decoded on the way."""

    def __init__(self, plain: Products) -> None:
        self._plain = plain

    def __call__(
        self, matrices: Sequence[Sequence[int]], inputs: Sequence[int], biases: Sequence[int] | None = None
    ) -> torch.Tensor:
        plain = self._plain
        planes = [*chain.from_iterable(matrices)]  # addresses and lengths in turn
        room = torch.empty(len(inputs) * plain.room, dtype=torch.uint8)
        numbers = plain.k, plain.order, room.data_ptr(), None if biases is None else list_addresses(biases)
        return multiply(self._kernel, planes, inputs, plain.rows, plain.n, *numbers, threads=plain.threads)

    def _kernel(self, *arguments: Any) -> None:
        assert KERNELS is not None
        if not KERNELS.lossless_products(*arguments):
            raise _damaged(self._plain.n, self._plain.k)


def _check_dtype(slab: torch.Tensor) -> None:
    if slab.dtype != torch.bfloat16:
        raise UnsuitableShape(f"lossless takes bfloat16 weights, not {slab.dtype}")


def _find_tile_lengths(rows: torch.Tensor) -> torch.Tensor:
    """Return the bytes of each encoded tile of ``rows`` [16 * tiles, k]."""
    tiles, k = len(rows) // ROWS, rows.shape[1]
    lengths = torch.zeros(tiles, dtype=torch.int64)
    if COMPILED is None:
        return _encode(rows, torch.empty(rows.nbytes, dtype=torch.uint8))
    COMPILED.penstock_lossless_lengths(rows.data_ptr(), tiles, k, lengths.data_ptr())
    return lengths


def _encode(rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Fill the beginning of ``out`` with the tiles of ``rows`` [16 * tiles, k]. Returns their lengths in bytes."""
    tiles, k = len(rows) // ROWS, rows.shape[1]
    lengths = torch.zeros(tiles, dtype=torch.int64)
    if COMPILED is not None:
        scratch = torch.empty(3 * (ROWS * k + 1), dtype=torch.uint8)
        COMPILED.penstock_lossless_encode(
            rows.data_ptr(), tiles, k, out.data_ptr(), lengths.data_ptr(), scratch.data_ptr()
        )
        return lengths
    at = 0
    for number, words in enumerate(rows.view(torch.uint16).numpy().reshape(tiles, ROWS, k)):
        tile = torch.from_numpy(encode_tile(words))
        out[at : at + len(tile)] = tile
        lengths[number] = len(tile)
        at += len(tile)
    return lengths


def _decode(plane: torch.Tensor, n: int, k: int, first: int, out: torch.Tensor) -> bool:
    """Fill ``out`` [rows, k] with the rows from ``first`` on. Returns False if the plane is damaged."""
    tiles = n // ROWS
    content, to = plane.numpy(), out.view(torch.uint16).numpy()
    if len(content) < 8 * tiles:
        return False
    bounds = [8 * tiles, *np.frombuffer(content[: 8 * tiles].tobytes(), np.int64).tolist()]
    bounds.append(bounds[-1] + 2 * (n % ROWS) * k)
    if bounds != sorted(bounds) or bounds[-1] > len(content):
        return False
    for at in range(0, len(to), ROWS):
        number = (first + at) // ROWS
        found = content[bounds[number] : bounds[number + 1]]
        words = decode_tile(found, k) if number < tiles else np.frombuffer(found.tobytes(), np.uint16).reshape(-1, k)
        if words is None:
            return False
        to[at : at + ROWS] = words[: len(to) - at]
    return True


def _find_damaged(tiles: torch.Tensor, start: int, ends: torch.Tensor, k: int) -> int | None:
    """Return the number of the first tile that is damaged or elsewhere, or None.

    ``tiles`` are the bytes of a matrix from ``start`` on, where the first of these tiles begins. ``ends``, bytes of
    uint64, tell where each ends in the matrix.
    """
    count, stop = len(ends) // 8, start + len(tiles)
    if COMPILED is not None:
        places = tiles.data_ptr(), start, stop, ends.data_ptr()
        damaged = int(COMPILED.penstock_lossless_first_damaged(*places, count, k, len(RUNS) - 1))
        return None if damaged < 0 else damaged
    content, at = tiles.numpy(), start
    for number, end in enumerate(np.frombuffer(ends.numpy(), np.int64).tolist()):
        if not at <= end <= stop or decode_tile(content[at - start : end - start], k) is None:
            return number
        at = end
    return None


def _tell(first: int, damaged: int | None) -> str | None:
    """Say which rows are damaged: those of tile ``damaged``, counted from tile ``first``."""
    if damaged is None:
        return None
    row = (first + damaged) * ROWS
    return f"rows {row} to {row + ROWS - 1} are inconsistent"


def _damaged(n: int, k: int) -> ValueError:
    return ValueError(f"the bytes of a lossless matrix [{n}, {k}] are damaged")
