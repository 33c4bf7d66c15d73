"""The bytes of encoded matrices, made from the weights as they are."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from ....kernels.formats.base import SLAB, UnsuitableShape
from ....kernels.formats.registry import FORMATS
from ....tiering.errors import BundleError, CheckpointError
from ....tiering.store.bundle.manifest import Block, Packing, TensorSpec
from ....tiering.units import MiB
from ...checkpoints.weights import SourceFormat, WeightReader
from ..arrange.formats import Choice, Key, of_matrix, shape_of
from ..arrange.planes import Planes
from .scratch_file import ScratchFile

_PIECE = 4 * MiB


class EncodedWeights:
    """WeightReader of an encoded layout, on top of ``weights``. Tensors without an encoding come as they are."""

    def __init__(
        self, weights: WeightReader, scratch: ScratchFile, importance: Mapping[Key, torch.Tensor] | None = None
    ) -> None:
        """Encoded matrices lie in ``scratch``. ``importance`` [k] of the columns of matrices, where it is known."""
        self._weights, self._scratch, self._importance = weights, scratch, importance or {}
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
        """Bytes of the planes of a matrix, found out by encoding it."""
        packed = replace(spec, packing=Packing(choice.format, transposed=choice.transposed))
        found = tuple(plane.nbytes for plane in self._planes(packed, expert))
        self._made.clear()
        return found

    def expect(self, block: Block) -> None:
        """As WeightReader."""
        self._weights.expect(block)

    def stored(self) -> Mapping[str, SourceFormat]:
        """As WeightReader."""
        return self._stored

    def plane(self, name: str, expert: int | None) -> Iterator[memoryview]:
        """As WeightReader."""
        return self._weights.plane(name, expert)

    def close(self) -> None:
        """As WeightReader."""
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
            rows = self._letting_go(
                split_slabs(self._weights.pieces(replace(spec, packing=None), expert), spec, choice)
            )
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
        return packing is not None and self._stored.get(spec.name) == SourceFormat(packing.format, packing.transposed)

    def _letting_go(self, slabs: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for slab in slabs:
            yield slab
            self._scratch.let_go()


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
