"""Encoded matrices in a bundle: where their planes lie (pure), and their bytes from the weights as they are."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ...kernels.formats.base import SLAB, UnsuitableShape
from ...kernels.formats.registry import FORMATS
from ...tiering.errors import CheckpointError
from ...tiering.store.bundle.manifest import TENSOR_ALIGNMENT, Block, Packing, TensorSpec
from ...tiering.units import BlockId, MiB
from ..checkpoints.layout import Layout, relaid
from ..checkpoints.weights import Stored, Weights
from .formats import Choice, Key, of_matrix
from .scratch_file import ScratchFile

_PIECE = 4 * MiB
_EQUAL = 1.02
"""What equal lengths may cost, where a format's depend on the numbers."""

Shape = tuple[int, ...]
Planes = tuple[int, ...]
"""Bytes of each plane of a matrix."""


def encoded(
    plan: Layout,
    chosen: Mapping[Key, Choice],
    lengths: Callable[[TensorSpec, int | None, Choice], Planes],
    advance: Callable[[int], None] = lambda _: None,
    *,
    equal: bool = True,
) -> tuple[Layout, tuple[str, ...]]:
    """``plan`` with the matrices in ``chosen`` encoded; and what had to stay as it is, in words.

    ``lengths`` tells the bytes of a matrix's planes (of an expert's, with its number) where its format cannot; where
    these differ little, matrices of one shape have room for the longest, unless ``equal`` is false. ``advance`` is told
    the bytes of each block that is done. Further planes of a block lie in blocks of their own, right behind it: what
    needs all reads them at once.
    """
    notes: dict[str, None] = {}
    found: dict[tuple[BlockId, str], Planes] = {}
    alike: dict[tuple[str, Shape], list[tuple[BlockId, str]]] = {}
    for block in plan.blocks:
        for spec in block.tensors:
            if choice := of_matrix(chosen, spec.name, block.id.expert):
                format_, key = FORMATS[choice.format], (block.id, spec.name)
                try:
                    known = format_.lengths(*shape_of(spec, choice))
                    found[key] = (known or lengths(spec, block.id.expert, choice))[: choice.planes]
                except UnsuitableShape as error:
                    notes.setdefault(f"{_where(block.id)} {list(spec.shape)} is stored as it is: {error}")
                    continue
                if known is None and equal:
                    alike.setdefault((choice.format, spec.shape), []).append(key)
        advance(block.extent.length)
    for keys in alike.values():
        _make_equal(found, keys)

    blocks: list[Block] = []
    for block in plan.blocks:
        stored: list[TensorSpec] = []
        further: dict[int, list[TensorSpec]] = {}
        for spec in block.tensors:
            planes = found.get((block.id, spec.name))
            if planes is None:
                stored.append(spec)
                continue
            choice, address = of_matrix(chosen, spec.name, block.id.expert), spec.offset % TENSOR_ALIGNMENT
            assert choice is not None
            for plane, length in enumerate(planes):
                packing = Packing(choice.format, plane, choice.transposed, address)
                made = replace(spec, offset=0, length=length, packing=packing)
                (further.setdefault(plane, []) if plane else stored).append(made)
        blocks.append(replace(block, tensors=tuple(stored)))
        for plane, specs in further.items():
            blocks.append(replace(block, id=block.id.residual(plane), tensors=tuple(specs)))
    return replace(plan, blocks=relaid(blocks)), tuple(notes)


def _make_equal(found: dict[tuple[BlockId, str], Planes], keys: Sequence[tuple[BlockId, str]]) -> None:
    """Give all matrices of ``keys`` the room of the largest, if that takes few bytes: equal blocks fill equal slots."""
    longest = tuple(map(max, zip(*(found[key] for key in keys), strict=True)))
    if sum(longest) * len(keys) <= _EQUAL * sum(sum(found[key]) for key in keys):
        found.update(dict.fromkeys(keys, longest))


class EncodedWeights:
    """``weights`` as the blocks of an encoded layout have them: those of a spec without a packing as they are."""

    def __init__(
        self, weights: Weights, scratch: ScratchFile, importance: Mapping[Key, torch.Tensor] | None = None
    ) -> None:
        """Encoded matrices lie in ``scratch``. ``importance`` [k] of the columns of matrices, where it is known."""
        self._weights, self._scratch, self._importance = weights, scratch, importance or {}
        self._stored = weights.stored()
        self._made: dict[str, tuple[torch.Tensor, ...]] = {}
        self._of: tuple[str, int | None] | None = None

    def pieces(self, spec: TensorSpec, expert: int | None) -> Iterator[memoryview]:
        """As Weights. Raises CheckpointError for numbers that the format cannot have."""
        if spec.packing is None:
            yield from self._weights.pieces(spec, expert)
            return
        if self._comes_as(spec):
            yield from self._weights.plane(spec.name, expert)
            return
        whole = memoryview(self._planes(spec, expert)[spec.packing.plane].numpy())  # type: ignore[arg-type]
        for start in range(0, len(whole), _PIECE):
            yield whole[start : start + _PIECE]
            self._scratch.let_go()
        if len(whole) < spec.length:  # others alike have more
            yield memoryview(bytes(spec.length - len(whole)))

    def lengths(self, spec: TensorSpec, expert: int | None, choice: Choice) -> Planes:
        """Bytes of the planes of a matrix, found out by encoding it."""
        packed = replace(spec, packing=Packing(choice.format, transposed=choice.transposed))
        found = tuple(plane.nbytes for plane in self._planes(packed, expert))
        self._made.clear()
        return found

    def expect(self, block: Block) -> None:
        self._weights.expect(block)

    def stored(self) -> Mapping[str, Stored]:
        return self._stored

    def plane(self, name: str, expert: int | None) -> Iterator[memoryview]:
        return self._weights.plane(name, expert)

    def close(self) -> None:
        self._made.clear()
        self._weights.close()

    def _planes(self, spec: TensorSpec, expert: int | None) -> tuple[torch.Tensor, ...]:
        """The planes of a matrix; those of a module, or of an expert, are kept until the next one comes."""
        owner = spec.name.rpartition(".")[0], expert
        if self._of != owner:
            self._made.clear()
            self._of = owner
        if spec.name not in self._made:
            assert spec.packing is not None
            format_, choice = FORMATS[spec.packing.format], Choice(spec.packing.format, spec.packing.transposed)
            rows = self._letting_go(slabs(self._weights.pieces(replace(spec, packing=None), expert), spec, choice))
            try:
                important = of_matrix(self._importance, spec.name, expert)
                self._made[spec.name] = format_.encode(rows, *shape_of(spec, choice), important, self._scratch.room)
            except UnsuitableShape:
                raise
            except ValueError as error:
                raise CheckpointError(
                    f"{spec.name}{'' if expert is None else f' of expert {expert}'} cannot be stored as "
                    f"{choice.format}: {error}; store this part as-is or lossless"
                ) from error
            if format_.planes == 1:
                return self._made.pop(spec.name)  # nobody asks again
        return self._made[spec.name]

    def _comes_as(self, spec: TensorSpec) -> bool:
        """Whether the source has the matrix as it is to be stored."""
        packing = spec.packing
        return packing is not None and self._stored.get(spec.name) == Stored(packing.format, packing.transposed)

    def _letting_go(self, slabs: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for slab in slabs:
            yield slab
            self._scratch.let_go()


def shape_of(spec: TensorSpec, choice: Choice) -> tuple[int, int]:
    """The shape [n, k] of what is encoded."""
    rows, columns = spec.shape
    return (columns, rows) if choice.transposed else (rows, columns)


def _where(block: BlockId) -> str:
    return f"each expert of {block.module}" if block.kind == "expert" else block.module


def slabs(pieces: Iterable[memoryview], spec: TensorSpec, choice: Choice) -> Iterator[torch.Tensor]:
    """The matrix that comes in ``pieces`` of any size, as slabs of whole rows."""
    dtype = getattr(torch, spec.dtype)
    rows, columns = spec.shape
    at_once = rows if choice.transposed else max(SLAB, _PIECE // (columns * dtype.itemsize) // SLAB * SLAB)
    buffer = np.empty(min(rows, at_once) * columns * dtype.itemsize, dtype=np.uint8)
    filled = 0

    def slab() -> torch.Tensor:
        made = torch.from_numpy(buffer[:filled]).view(dtype).view(-1, columns)
        return made.t().contiguous() if choice.transposed else made

    for piece in pieces:
        left = np.frombuffer(piece, dtype=np.uint8)
        while len(left):
            step = min(len(left), len(buffer) - filled)
            buffer[filled : filled + step] = left[:step]
            filled, left = filled + step, left[step:]
            if filled == len(buffer):
                yield slab()
                filled = 0
    if filled:
        yield slab()
