"""Stream the blocks of a bundle, the fourth stage of packing: each with its bytes, the next ones read ahead."""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest

import torch

from ....tiering.store.bundle.manifest import Block
from ...checkpoints.weights import CHUNK, WeightReader, pieces_of

Piece = tuple[int, memoryview]
"""An offset in a block, and the bytes there."""
BlockBytes = tuple[Block, Iterator[Piece]]
"""A block, and its content: offsets in it, ascending, and the bytes there. A piece is valid until the next."""


def stream_blocks(blocks: Sequence[Block], weights: WeightReader, room: int = 0) -> Generator[BlockBytes]:
    """``blocks`` one after the other, from ``weights``, which has them encoded where the block has an encoding.

    With ``room`` for some pieces, in bytes, a thread reads ahead of what is asked for. Close the generator, so that it
    ends. ``weights`` are its own meanwhile.
    """
    count = room // CHUNK
    if count < 2:
        yield from _in_turn(blocks, weights)
        return
    reader = _Reader(blocks, weights, count)
    try:
        for block in blocks:
            yield block, reader.pieces()
    finally:
        reader.close()


def _in_turn(blocks: Sequence[Block], weights: WeightReader) -> Iterator[BlockBytes]:
    for block, following in zip_longest(blocks, blocks[1:]):
        if following:
            weights.expect(following)
        yield block, pieces_of(block, weights)


class _Stopped(Exception):
    """Nobody wants what is read any more."""


class _Reader:
    """A thread that reads the pieces of ``blocks`` ahead, into ``count`` buffers of CHUNK bytes."""

    def __init__(self, blocks: Sequence[Block], weights: WeightReader, count: int) -> None:
        self._blocks, self._weights = blocks, weights
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(memoryview(bytearray(CHUNK)))
        self._read: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="penstock-pack-read", daemon=True)
        self._thread.start()

    def pieces(self) -> Iterator[Piece]:
        """Those of the next block. Raises what reading raised."""
        while (found := self._read.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            offset, piece = found
            yield offset, piece
            self._free.put(memoryview(piece.obj))

    def close(self) -> None:
        """Stop, and wait for the thread. Idempotent."""
        with suppress(queue.Empty):
            while True:
                self._free.get_nowait()
        self._free.put(None)
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(1)  # as threads.py says, which gives threads to come theirs back
        try:
            for _, pieces in _in_turn(self._blocks, self._weights):
                for offset, piece in pieces:
                    for at in range(0, len(piece), CHUNK):
                        self._hand_over(offset + at, piece[at : at + CHUNK])
                self._read.put(None)
        except _Stopped:
            pass
        except BaseException as error:
            self._read.put(error)

    def _hand_over(self, offset: int, piece: memoryview) -> None:
        room = self._free.get()
        if room is None:
            raise _Stopped
        room[: len(piece)] = piece
        self._read.put((offset, room[: len(piece)]))
