"""The bytes of encoded matrices, made from the weights as they are."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ....kernels.formats.base import SLAB, PlaneAllocator, UnsuitableShape, allocate_on_heap
from ....kernels.formats.planes import VaryingLengths
from ....kernels.formats.registry import FORMATS
from ....tiering.errors import BundleError, CheckpointError
from ....tiering.store.bundle.manifest import Block, Packing, TensorSpec
from ....tiering.units import MiB
from ...checkpoints.weights import SourceFormat, WeightReader
from ..arrange.formats import Choice, Key, of_matrix, shape_of
from ..arrange.planes import Planes
from .ahead import Ahead, Work
from .scratch_file import ScratchFile

_PIECE = 4 * MiB

T = TypeVar("T")


class EncodedWeights:
    """WeightReader of an encoded layout, on top of ``weights``. Tensors without an encoding come as they are."""

    def __init__(
        self,
        weights: WeightReader,
        scratch: ScratchFile,
        importance: Mapping[Key, torch.Tensor] | None = None,
        *,
        room: int = 0,
        threads: int = 1,
    ) -> None:
        """Encoded matrices lie in ``scratch``. Those that have room in ``room`` bytes of memory are encoded, or
        measured, ahead by ``threads``. ``importance`` [k] of the columns of matrices, where it is known."""
        self._weights, self._scratch, self._importance = weights, scratch, importance or {}
        self._encoded = Ahead[tuple[torch.Tensor, ...]](room, threads)
        self._measured = Ahead[Planes](room, threads)
        self._stored = weights.stored()
        self._made: dict[str, tuple[torch.Tensor, ...]] = {}
        self._of: tuple[str, int | None] | None = None

    def pieces(self, spec: TensorSpec, expert: int | None) -> Iterator[memoryview]:
        """As WeightReader. Raises CheckpointError for numbers that the format cannot have."""
        if spec.packing is None:
            yield from self._weights.pieces(spec, expert)
            return
        if self._comes_as(spec):
            yield from self._weights.plane(spec.name, expert)
            return
        whole = memoryview(self._planes(spec, expert)[spec.packing.plane].numpy())  # type: ignore[arg-type]
        if len(whole) > spec.length:  # what an interrupted packing has kept of lengths is not what it found
            raise BundleError(
                f"{spec.name} takes {len(whole)} bytes, and {spec.length} were kept for it; delete the unfinished "
                "bundle in the store (its name ends with .partial) and pack again"
            )
        for start in range(0, len(whole), _PIECE):
            yield whole[start : start + _PIECE]
            self._scratch.let_go()
        if len(whole) < spec.length:  # others alike have more
            yield memoryview(bytes(spec.length - len(whole)))

    def lengths(self, spec: TensorSpec, expert: int | None, choice: Choice) -> Planes:
        """Bytes of the planes of a matrix, which depend on its numbers."""
        known = self._measured.take((spec.name, expert))
        if known is not None:
            return known
        packed = replace(spec, packing=Packing(choice.format, transposed=choice.transposed))
        return self._measure(packed, split_slabs(self._weights.pieces(spec, expert), spec, choice))

    def expect_lengths(self, blocks: Sequence[Block]) -> None:
        """The lengths of all matrices of ``blocks`` will be asked for, in this order."""
        self._measured.expect(
            self._work(spec, block.id.expert, following if at == 0 else None, self._measure, 1)
            for block, following in zip_longest(blocks, blocks[1:])
            for at, spec in enumerate(block.tensors)
        )

    def expect_all(self, blocks: Sequence[Block]) -> None:
        """All tensors of ``blocks`` will be asked for, in this order."""
        self._encoded.expect(self._works(blocks))

    def expect(self, block: Block) -> None:
        """As WeightReader."""
        if all(spec.packing is None or self._comes_as(spec) for spec in block.tensors):
            self._weights.expect(block)  # what is encoded ahead was read by now

    def stored(self) -> Mapping[str, SourceFormat]:
        """As WeightReader."""
        return self._stored

    def plane(self, name: str, expert: int | None) -> Iterator[memoryview]:
        """As WeightReader."""
        return self._weights.plane(name, expert)

    def close(self) -> None:
        """As WeightReader."""
        self._made.clear()
        self._encoded.close()
        self._measured.close()
        self._weights.close()

    def _works(self, blocks: Sequence[Block]) -> Iterator[Work[tuple[torch.Tensor, ...]]]:
        """The matrices of ``blocks`` in the order in which ``_planes`` has to encode them."""
        owner: tuple[str, int | None] | None = None
        seen: set[str] = set()
        for block, following in zip_longest(blocks, blocks[1:]):
            fresh = True
            for spec in block.tensors:
                if spec.packing is None or self._comes_as(spec):
                    continue
                own = spec.name.rpartition(".")[0], block.id.expert
                if own != owner:
                    owner, seen = own, set()
                if spec.name not in seen:
                    seen.add(spec.name)
                    yield self._work(spec, block.id.expert, following if fresh else None, self._encode, 2)
                    fresh = False

    def _work(
        self,
        spec: TensorSpec,
        expert: int | None,
        following: Block | None,
        use: Callable[[TensorSpec, Iterable[torch.Tensor], int | None], T],
        times: int,
    ) -> Work[T]:
        """Work that is to ``use`` a matrix, in ``times`` its bytes of memory, once more where it is transposed.
        ``following`` is the block that is read next."""
        assert spec.packing is not None
        size = prod(spec.shape) * getattr(torch, spec.dtype).itemsize

        def read() -> Callable[[], T]:
            if following is not None:
                self._weights.expect(following)
            whole, at = np.empty(size, dtype=np.uint8), 0
            for piece in self._weights.pieces(replace(spec, packing=None), expert):
                whole[at : at + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
                at += len(piece)
            return partial(use, spec, _whole_slab(whole[:at], spec), expert)

        return Work((spec.name, expert), size * (times + spec.packing.transposed), read)

    def _measure(self, spec: TensorSpec, rows: Iterable[torch.Tensor], expert: int | None = None) -> Planes:
        """Bytes of the planes of the matrix that comes in ``rows``. Raises UnsuitableShape."""
        choice = _choice_of(spec)
        format_ = FORMATS[choice.format]
        assert isinstance(format_, VaryingLengths), "the lengths of others are known"
        return format_.find_lengths(rows, *shape_of(spec, choice))

    def _encode(
        self,
        spec: TensorSpec,
        rows: Iterable[torch.Tensor],
        expert: int | None,
        room: PlaneAllocator = allocate_on_heap,
    ) -> tuple[torch.Tensor, ...]:
        """The planes of the matrix that comes in ``rows``, in memory that ``room`` gives. Raises UnsuitableShape,
        CheckpointError."""
        choice = _choice_of(spec)
        try:
            important = of_matrix(self._importance, spec.name, expert)
            return FORMATS[choice.format].encode(rows, *shape_of(spec, choice), important, room)
        except UnsuitableShape:
            raise
        except ValueError as error:
            raise CheckpointError(
                f"{spec.name}{'' if expert is None else f' of expert {expert}'} cannot be stored as "
                f"{choice.format}: {error}; store this part as-is or lossless"
            ) from error

    def _planes(self, spec: TensorSpec, expert: int | None) -> tuple[torch.Tensor, ...]:
        """The planes of a matrix; those of a module, or of an expert, are kept until the next one comes."""
        owner = spec.name.rpartition(".")[0], expert
        if self._of != owner:
            self._made.clear()
            self._of = owner
        if spec.name not in self._made:
            assert spec.packing is not None
            planes = self._encoded.take((spec.name, expert))
            if planes is None:
                pieces = self._weights.pieces(replace(spec, packing=None), expert)
                rows = self._letting_go(split_slabs(pieces, spec, _choice_of(spec)))
                planes = self._encode(spec, rows, expert, self._scratch.room)
            if FORMATS[spec.packing.format].planes == 1:
                return planes  # nobody asks again
            self._made[spec.name] = planes
        return self._made[spec.name]

    def _comes_as(self, spec: TensorSpec) -> bool:
        """Whether the source has the matrix as it is to be stored."""
        packing = spec.packing
        return packing is not None and self._stored.get(spec.name) == SourceFormat(packing.format, packing.transposed)

    def _letting_go(self, slabs: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for slab in slabs:
            yield slab
            self._scratch.let_go()


def _choice_of(spec: TensorSpec) -> Choice:
    assert spec.packing is not None
    return Choice(spec.packing.format, spec.packing.transposed)


def _whole_slab(content: npt.NDArray[np.uint8], spec: TensorSpec) -> Iterator[torch.Tensor]:
    """The matrix with the bytes ``content`` as one slab, in its own dtype."""
    made = torch.from_numpy(content).view(getattr(torch, spec.dtype)).view(spec.shape)
    yield made.t().contiguous() if _choice_of(spec).transposed else made


def split_slabs(pieces: Iterable[memoryview], spec: TensorSpec, choice: Choice) -> Iterator[torch.Tensor]:
    """The matrix that comes in ``pieces`` of any size, as slabs [rows, k] of whole rows, in its own dtype."""
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
