"""Weights that a checkpoint has quantised: what makes one, its numbers, and its numbers as a plane of a weight format.

A quantised weight is several tensors of the checkpoint: numbers, scales and perhaps zeros. Here they become one
QuantisedTensor under the name that the weight would have if it were not quantised, so that transformers' renaming and
stacking of weights (``convert.py``) applies to it; the number of a row says where it ends up. No number is quantised
anew: a plane holds the checkpoint's own, row by row. Which tensors make one is for ``quantisations.py`` to say.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ....kernels.formats.base import SLAB
from ....kernels.formats.blocks import Blocks
from ....kernels.formats.fp8 import BLOCK
from ....kernels.formats.registry import FORMATS
from ..files.safetensors_file import SourceTensor

ReadTensor = Callable[[SourceTensor], torch.Tensor]
"""Reads a tensor of the checkpoint as it is."""

Numbers = Callable[[slice], torch.Tensor]
"""The numbers of some rows of a matrix, float32 [rows, k]. A slice starts at a multiple of SLAB rows."""

FP8, FP8_ROWS = f"fp8-{BLOCK}x{BLOCK}", f"fp8-1x{BLOCK}"


class Lines(NamedTuple):
    """The numbers of a matrix [n, k], a line for each row in each of ``parts``.

    ``order``, int32 [k], has the column that each stored number belongs to. None if they ascend.
    """

    parts: tuple[torch.Tensor, ...]
    order: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class QuantisedTensor(SourceTensor):
    """A weight that is quantised: ``shape`` is its own, and ``tensors`` are what the checkpoint has for it.

    ``format`` is the weight format that its numbers fit, and ``read_lines`` makes lines of the tensors. Where it is
    None, no format stores them as they are, and ``read_numbers`` decodes them. If ``transposed``, either gives the
    transpose. ``of_linear``: the layout is that of ``nn.Linear``, whatever module the weight belongs to. ``file``,
    ``offset`` and ``length`` say where most of it is.
    """

    tensors: tuple[SourceTensor, ...]
    format: str | None = None
    read_lines: Callable[[ReadTensor, tuple[SourceTensor, ...]], Lines] | None = None
    read_numbers: Callable[[ReadTensor, tuple[SourceTensor, ...]], Numbers] | None = None
    transposed: bool = False
    of_linear: bool = False

    def part(self, index: int) -> "QuantisedTensor":
        """The slice ``index`` of the first dimension: one expert's matrix."""
        tensors = tuple(tensor.part(index) for tensor in self.tensors)
        main = tensors[0]
        return replace(self, shape=self.shape[1:], tensors=tensors, offset=main.offset, length=main.length)

    def turned(self) -> "QuantisedTensor":
        """Its transpose."""
        return replace(self, shape=(*self.shape[:-2], *self.shape[:-3:-1]), transposed=not self.transposed)

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape [n, k] of what is stored; of one matrix if several are stacked."""
        n, k = self.shape[-2:]
        return (k, n) if self.transposed else (n, k)

    @property
    def order(self) -> SourceTensor | None:
        """What says in which order the columns are stored, if they do not ascend."""
        return self.tensors[-1] if self.format is not None and _blocks(self.format).ordered else None

    def lines(self, read: ReadTensor) -> Lines:
        """Its numbers in its format, row by row, from tensors that ``read`` reads. Raises CheckpointError."""
        assert self.read_lines is not None
        return self.read_lines(read, self.tensors)

    def numbers(self, read: ReadTensor) -> Numbers:
        """Its numbers, decoded, from tensors that ``read`` reads, of one matrix. Raises CheckpointError."""
        if self.format is None:
            assert self.read_numbers is not None
            return self.read_numbers(read, self.tensors)
        n, k = self.matrix
        format_ = FORMATS[self.format]
        stored = plane(self.format, [self.lines(read)], None, k)

        def decode(rows: slice) -> torch.Tensor:
            made = torch.empty(rows.stop - rows.start, k)
            format_.decode([stored], n, k, rows, made)
            return made

        return decode


@dataclass(frozen=True, slots=True)
class UnreadableTensor(SourceTensor):
    """A tensor that is quantised in a way that was not found out: ``reason`` says what is missing. It is an error only
    where a model needs it."""

    reason: str

    def part(self, index: int) -> "UnreadableTensor":
        """Itself: it is not read."""
        return self


def quantised_tensor(
    shape: Iterable[int],
    tensors: tuple[SourceTensor, ...],
    format_name: str | None,
    lines: Callable[[ReadTensor, tuple[SourceTensor, ...]], Lines] | None = None,
    numbers: Callable[[ReadTensor, tuple[SourceTensor, ...]], Numbers] | None = None,
    *,
    transposed: bool = False,
    of_linear: bool = False,
) -> QuantisedTensor:
    """A weight of ``tensors``, the first of which is most of it and names it for now."""
    main = tensors[0]
    place = main.name, main.file, torch.uint8, tuple(shape), main.offset, main.length
    return QuantisedTensor(*place, tensors, format_name, lines, numbers, transposed, of_linear)


def stacked_format(sources: Sequence[QuantisedTensor], mapping: torch.Tensor | None) -> str | None:
    """The format of a matrix whose rows are those of ``sources``, as ``mapping`` [n, 2] says: source and row of each
    (None: all rows of the only source). None if the sources do not fit one format."""
    formats = {source.format for source in sources}
    if len(formats) > 1:
        return None
    (name,) = formats
    if name == FP8 and mapping is not None:
        # A line of scales belongs to rows that lie together in the source.
        together = mapping.clone()
        together[:, 1] //= BLOCK
        apart = (together[1:] != together[:-1]).any(1).nonzero().flatten() + 1
        first = mapping[torch.cat((torch.zeros(1, dtype=torch.long), apart)), 1]
        if bool((apart % BLOCK).any()) or bool((first % BLOCK).any()):
            return FP8_ROWS
    return name


def plane(format_name: str, lines: Sequence[Lines], mapping: torch.Tensor | None, k: int) -> torch.Tensor:
    """The plane, uint8 [length], of the matrix whose rows are ``lines`` of its sources, as ``mapping`` says. All have
    their columns in the same order."""
    order = lines[0].order
    parts = [
        torch.cat(each) if len(each) > 1 else each[0] for each in zip(*(line.parts for line in lines), strict=True)
    ]
    if mapping is not None:
        starts = torch.tensor([0, *(len(line.parts[0]) for line in lines[:-1])]).cumsum(0)
        rows = starts[mapping[:, 0]] + mapping[:, 1]
        if not torch.equal(rows, torch.arange(len(parts[0]))):
            parts = [part[rows] for part in parts]
    n = len(parts[0])
    format_ = _blocks(format_name)
    tables = format_.parts(n, k)
    stored = [part[:: table.rows] for part, table in zip(parts, tables, strict=False)]
    return format_.join([*stored, *([] if order is None else [order])], n, k)


def fits(format_name: str, n: int, k: int) -> bool:
    """Whether the format ``format_name`` is there and stores a matrix [n, k]."""
    try:
        _blocks(format_name).lengths(n, k)
    except (KeyError, ValueError):
        return False
    return True


def as_lines(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, bytes per row] of a matrix."""
    return tensor.contiguous().view(-1).view(torch.uint8).view(len(tensor), -1)


def slabs(n: int, most: int) -> Iterable[slice]:
    """The rows of a matrix of ``n``, about ``most`` of them at a time."""
    step = max(SLAB, most // SLAB * SLAB)
    return (slice(start, min(n, start + step)) for start in range(0, n, step))


def _blocks(name: str) -> Blocks:
    format_ = FORMATS[name]
    assert isinstance(format_, Blocks)
    return format_
