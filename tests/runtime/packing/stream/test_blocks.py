"""Blocks in a stream, with and without a thread that reads ahead: the same bytes, the same errors, and an end."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from penstock.runtime.checkpoints.weights import CHUNK, PlainWeights
from penstock.runtime.packing.stream.blocks import BlockBytes, stream_blocks
from penstock.tiering.errors import CheckpointError
from penstock.tiering.store.bundle.manifest import Block, TensorSpec
from penstock.tiering.units import BlockId, Extent

COUNT = 6
LENGTH = 3 * CHUNK // 2
"""Bytes of a tensor: more than one piece."""


def block(number: int) -> Block:
    spec = TensorSpec(str(number), "uint8", (LENGTH,), 0, LENGTH)
    return Block(BlockId("dense", f"layer.{number}"), Extent(0, number * LENGTH, LENGTH), "", (spec,))


BLOCKS = [block(number) for number in range(COUNT)]
rooms = pytest.mark.parametrize("room", [0, 3 * CHUNK], ids=["in turn", "ahead"])


class Weights(PlainWeights):
    """Tensors of their own number; that of ``broken`` cannot be read."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.asked = broken, list[str]()
        self.buffer = bytearray(LENGTH)

    def pieces(self, spec: TensorSpec, expert: int | None) -> Iterator[memoryview]:
        self.asked.append(spec.name)
        if spec.name == self.broken:
            raise CheckpointError("the drive fails")
        self.buffer[:] = bytes([int(spec.name)]) * LENGTH  # valid until the next
        yield memoryview(self.buffer)[:CHUNK]
        yield memoryview(self.buffer)[CHUNK:]

    def expect(self, block: Block) -> None:
        pass

    def close(self) -> None:
        pass


def helpers() -> int:
    return sum(thread.name == "penstock-pack-read" for thread in threading.enumerate())


@rooms
def test_each_block_has_its_bytes(room: int) -> None:
    with closing(stream_blocks(BLOCKS, Weights(), room)) as stream:
        for number, (block, pieces) in enumerate(stream):
            assert block is BLOCKS[number]
            found = bytearray(LENGTH)
            for offset, piece in pieces:
                found[offset : offset + len(piece)] = piece
            assert found == bytes([number]) * LENGTH
    assert helpers() == 0


@rooms
def test_an_error_of_reading_comes_with_its_block(room: int) -> None:
    seen = []

    def read(stream: Iterator[BlockBytes]) -> None:
        seen.extend((block.id.module, sum(len(piece) for _, piece in pieces)) for block, pieces in stream)

    with (
        closing(stream_blocks(BLOCKS, Weights(broken="2"), room)) as stream,
        pytest.raises(CheckpointError, match="the drive fails"),
    ):
        read(stream)
    assert seen == [("layer.0", LENGTH), ("layer.1", LENGTH)]
    assert helpers() == 0


def test_whoever_stops_in_the_middle_leaves_no_thread() -> None:
    weights = Weights()
    with closing(stream_blocks(BLOCKS, weights, 3 * CHUNK)) as stream:
        _, pieces = next(stream)
        next(pieces)
        assert helpers() == 1
    assert helpers() == 0
    assert len(weights.asked) < COUNT, "no more is read than there is room for"
