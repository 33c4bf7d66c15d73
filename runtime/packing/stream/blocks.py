"""Stream the blocks of a bundle, the fourth stage of packing: each with its bytes, the next one read ahead."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from ....tiering.store.bundle.manifest import Block
from ...checkpoints.weights import WeightReader, pieces_of

BlockBytes = tuple[Block, Iterator[tuple[int, memoryview]]]
"""A block, and its content: offsets in it, ascending, and the bytes there. A piece is valid until the next."""


def stream_blocks(blocks: Sequence[Block], weights: WeightReader) -> Iterator[BlockBytes]:
    """``blocks`` one after the other, from ``weights``, which has them encoded where the block has an encoding."""
    for block, following in zip_longest(blocks, blocks[1:]):
        if following:
            weights.expect(following)
        yield block, pieces_of(block, weights)
