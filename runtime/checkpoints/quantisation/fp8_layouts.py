"""Layouts of float8 weights: a matrix of float8 numbers, and scales of it as a whole, of its rows or of blocks.

A number is the float8 number times its scale, whatever the scales are called. Scales are floating-point numbers, or
exponents of two (E8M0). Some experts have numbers of four bits (E2M1) in the same layout, two to a byte.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ....kernels.formats.fp8 import BLOCK
from ....tiering.errors import CheckpointError
from ....tiering.units import align_up
from ..files.safetensors_file import SourceTensor
from .expected import finite
from .quantised_tensor import (
    FP8,
    FP8_ROWS,
    Lines,
    Numbers,
    QuantisedTensor,
    ReadTensor,
    as_lines,
    fits,
    quantised_tensor,
)

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_NOT_FINITE = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}
"""The first bits, less the sign, that mean no finite number."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The number that each four bits mean."""

SCALES = (".weight_scale_inv", ".weight_scale", ".qscale_weight", ".scale", ".scale_weight")
"""What the scales of ``NAME.weight`` are called, after NAME."""
OWN_SCALES = ("_scale_inv", "_scale")
"""What the scales of a stack of experts NAME are called, after NAME."""

_LEAST_WIDTH = 16
_MX, _MX_BLOCK = "fp8-1x32", 32


class Grid(NamedTuple):
    """Scales of a matrix [n, k]: a table of ``rows`` by ``columns``, each for ``height`` rows and ``width`` columns."""

    rows: int
    columns: int
    height: int
    width: int


def scales_of(name: str, tensors: Mapping[str, SourceTensor]) -> list[SourceTensor]:
    """The tensors that may be the scales of the numbers ``name``, by their names."""
    stem = name.removesuffix(".weight")
    names = [stem + end for end in SCALES] if stem != name else [name + end for end in OWN_SCALES]
    return [tensors[each] for each in names if each in tensors]


def is_fp8(tensor: SourceTensor, tensors: Mapping[str, SourceTensor]) -> bool:
    """Whether ``tensor`` is the numbers of a float8 weight, not the scales of one, or of one with two to a byte."""
    if tensor.dtype in FLOAT8:
        return not tensor.name.endswith((*SCALES, *OWN_SCALES))
    return _is_packed(tensor) and len(tensor.shape) > 1 and bool(scales_of(tensor.name, tensors))


def fp8_weight(numbers: SourceTensor, scales: SourceTensor, block: list[int] | None) -> QuantisedTensor:
    """The weight of ``numbers`` [.., n, k] with ``scales``. ``block`` is what the configuration says of their blocks.

    Raises ValueError when scales do not fit numbers.
    """
    if not _is_scale(scales.dtype):
        raise ValueError(f"its scales {scales.name} are {scales.dtype}")
    if not 2 <= len(numbers.shape) <= 3 or not numbers.length:
        raise ValueError(f"it is {list(numbers.shape)}, not a matrix or a stack of them")
    *experts, n, k = numbers.shape
    if _is_packed(numbers):
        k *= 2
    grid = _grid(scales.shape, experts, n, k, block)
    if grid is None:
        raise ValueError(f"{list(scales.shape)} scales {scales.name} do not fit [{n}, {k}] in blocks of {block}")
    name = _format(numbers, grid, n, k)

    def lines(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Lines:
        return _lines(read, tensors, grid, n, k, _MX_BLOCK if name == _MX else BLOCK)

    def decoded(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Numbers:
        return _numbers(read, tensors, grid, k)

    return quantised_tensor((*experts, n, k), (numbers, scales), name, lines, decoded)


def _is_packed(tensor: SourceTensor) -> bool:
    return tensor.dtype in (torch.int8, torch.float4_e2m1fn_x2)


def _is_scale(dtype: torch.dtype) -> bool:
    return dtype in (torch.uint8, torch.float8_e8m0fnu) or (dtype.is_floating_point and dtype.itemsize >= 2)


def _grid(scales: tuple[int, ...], experts: list[int], n: int, k: int, block: list[int] | None) -> Grid | None:
    """How ``scales`` of this shape belong to each matrix; None where they do not fit."""
    if experts:
        if scales[:1] != tuple(experts):
            return None
        scales = scales[1:]
    if all(size == 1 for size in scales):
        return Grid(1, 1, n, k)
    if len(scales) == 1:
        scales = (*scales, 1)
    rows, columns = scales if len(scales) == 2 else (0, 0)
    if block is not None:
        if (rows, columns) == (-(-n // block[0]), -(-k // block[1])):
            # A block may be larger than the matrix; it need not be repeated for rows that are not there.
            return Grid(rows, columns, min(block[0], align_up(n, BLOCK)), min(block[1], align_up(k, BLOCK)))
        return Grid(n, 1, 1, k) if (rows, columns) == (n, 1) else None
    if not rows or not columns or n % rows or k % columns:
        return None
    height, width = n // rows, k // columns
    # Scales for a few numbers of a row each are those of a transpose.
    return Grid(rows, columns, height, width) if columns == 1 or width >= _LEAST_WIDTH else None


def _format(numbers: SourceTensor, grid: Grid, n: int, k: int) -> str | None:
    """The weight format that stores the numbers as they are, if there is one."""
    if numbers.dtype != torch.float8_e4m3fn:
        return None
    if grid.columns == 1 or grid.width % BLOCK == 0:
        name = FP8 if grid.rows == 1 or grid.height % BLOCK == 0 else FP8_ROWS
    else:
        name = _MX if grid.width % _MX_BLOCK == 0 else ""
    return name if fits(name, n, k) else None


def _read(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and scales. Raises CheckpointError where one is infinite or none: a weight format has no NaN."""
    numbers, scales = map(read, tensors)
    if numbers.dtype in FLOAT8:
        highest = (numbers.view(torch.uint8) & 0x7F).amax()
        if int(highest) >= _NOT_FINITE[numbers.dtype]:
            raise CheckpointError(
                f"{tensors[0].file}: {tensors[0].name} has numbers that are infinite or none; fetch it again"
            )
    return numbers, finite(scales, tensors[1])


def _lines(read: ReadTensor, tensors: tuple[SourceTensor, ...], grid: Grid, n: int, k: int, block: int) -> Lines:
    """Each row with its own scales, one for ``block`` columns."""
    numbers, scales = _read(read, tensors)
    count = -(-k // block)
    each = _values(scales).reshape(grid.rows, grid.columns)
    each = each.expand(-1, count) if grid.columns == 1 else each.repeat_interleave(grid.width // block, 1)[:, :count]
    return Lines((as_lines(numbers), as_lines(each.repeat_interleave(grid.height, 0)[:n])))


def _numbers(read: ReadTensor, tensors: tuple[SourceTensor, ...], grid: Grid, k: int) -> Numbers:
    numbers, scales = _read(read, tensors)
    each = _values(scales).reshape(grid.rows, grid.columns)
    packed = _is_packed(tensors[0])

    def decode(rows: slice) -> torch.Tensor:
        own = unpack_e2m1(numbers[rows]) if packed else numbers[rows].float()
        of_rows = each[torch.arange(rows.start, rows.stop) // grid.height]
        return own * of_rows.repeat_interleave(grid.width, 1)[:, :k]

    return decode


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """float32 [rows, 2 * columns] from two numbers in each byte of [rows, columns], the low half first."""
    pairs = packed.view(torch.uint8).long()
    return torch.tensor(E2M1)[torch.stack((pairs & 15, pairs >> 4), -1)].flatten(1)


def _values(scales: torch.Tensor) -> torch.Tensor:
    """float32; bytes are exponents of two."""
    return (scales.float() - 127).exp2() if scales.dtype == torch.uint8 else scales.float()


def weight_block(config: Mapping[str, Any]) -> list[int] | None:
    """Rows and columns of a block, as a configuration says. Raises ValueError."""
    block = config.get("weight_block_size")
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise ValueError(f"weight_block_size is {block!r}, not two natural numbers")
    return block
