"""Weights as a model's modules hold them, whatever they are read from: a checkpoint or a model in memory."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch

from ...tiering.errors import CheckpointError
from ...tiering.store.bundle.manifest import Block, TensorSpec
from ...tiering.units import MiB

CHUNK = 4 * MiB
"""Bytes of a weight that are read or cast at a time, where there is room."""


class SourceFormat(NamedTuple):
    """The weight format in which a source has a weight. ``transposed``: the source has the transpose of it."""

    format: str
    transposed: bool = False


class WeightReader(Protocol):
    """Reads the weights of a model, as its modules hold them. For one thread at a time."""

    def pieces(self, spec: TensorSpec, expert: int | None) -> Iterator[memoryview]:
        """The bytes of the tensor ``spec``, or of one expert's slice, in order. A piece is valid until the next."""
        ...

    def expect(self, block: Block) -> None:
        """The weights of ``block`` will be asked for next."""
        ...

    def stored(self) -> Mapping[str, SourceFormat]:
        """The weights that come quantised, by name, and can be stored as they come."""
        ...

    def plane(self, name: str, expert: int | None) -> Iterator[memoryview]:
        """The bytes of a weight in ``stored``, or of one expert's slice of it, in pieces. No number is quantised
        anew."""
        ...

    def close(self) -> None:
        """Let go of the source. Idempotent."""
        ...


class PlainWeights:
    """Weights none of which come quantised."""

    def stored(self) -> Mapping[str, SourceFormat]:
        """None."""
        return {}

    def plane(self, name: str, expert: int | None) -> Iterator[memoryview]:
        """Raises KeyError: there is none."""
        raise KeyError(name)


def pieces_of(block: Block, weights: WeightReader) -> Iterator[tuple[int, memoryview]]:
    """The content of ``block``: offsets in the block, ascending, and the bytes there. Raises CheckpointError where a
    tensor has another length than the model's."""
    for spec in block.tensors:
        at = spec.offset
        for piece in weights.pieces(spec, block.id.expert):
            yield at, piece
            at += len(piece)
        if at != spec.offset + spec.length:
            raise CheckpointError(
                f"{spec.name} has {at - spec.offset} bytes instead of {spec.length}; the checkpoint is damaged, or of "
                "another model"
            )


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def split_bytes(tensor: torch.Tensor, step: int) -> Iterator[memoryview]:
    """The memory of a contiguous tensor, ``step`` bytes at a time."""
    view = as_bytes(tensor)
    for start in range(0, len(view), step):
        yield view[start : start + step]
