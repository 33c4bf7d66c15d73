"""A small bundle of random blocks in two files, for the tests of the store."""

import queue
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from penstock.kernels.io.reading import Reader, Threads
from penstock.kernels.memory.arena import Arena
from penstock.tiering.events import Part, Slot
from penstock.tiering.store.bundle.flash import BundleFlash
from penstock.tiering.store.bundle.manifest import Block, DataFile, Manifest, TensorSpec, place_tensors
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.store.bundle.writer import BundleWriter
from penstock.tiering.units import BlockId, Extent

SIZES = ((5000, 64), (100,), (70_000, 1), (4096,), (1, 2, 3), (30_000,), (9000, 9000), (12_288,))
"""Bytes of the tensors of each block; the last three blocks go into a second file."""


def plan() -> tuple[list[Block], list[DataFile]]:
    blocks, ends = [], [0, 0]
    for number, sizes in enumerate(SIZES):
        specs, length = place_tensors([(f"b{number}.t{n}", "uint8", (size,), size) for n, size in enumerate(sizes)])
        file = int(number >= 5)
        blocks.append(Block(BlockId("dense", f"b{number}"), Extent(file, ends[file], length), "", specs, number == 0))
        ends[file] += length
    return blocks, [DataFile(f"data-{n:05}.bin", end) for n, end in enumerate(ends)]


def content(spec: TensorSpec) -> bytes:
    return random.Random(spec.name).randbytes(spec.length)


def pieces(block: Block) -> Iterator[tuple[int, memoryview]]:
    for spec in block.tensors:
        data = memoryview(content(spec))
        yield spec.offset, data[:1000]
        if data[1000:]:
            yield spec.offset + 1000, data[1000:]


def write(target: Path, upto: int | None = None) -> BundleWriter:
    """Write the bundle, or its first ``upto`` blocks and leave it as a crash would."""
    blocks, files = plan()
    bundle = BundleWriter(target, blocks, files, staging=16 * 1024)
    for block in blocks[bundle.done : upto]:
        bundle.append(pieces(block))
    if upto is None:
        bundle.finish(Manifest("identity", "checkpoint", "uint8", "as-is", {}, tuple(files), ()))
    bundle.close()
    return bundle


def files_of(target: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(target.iterdir())}


def read(bundle: Bundle, blocks: Sequence[Block]) -> list[bytes]:
    arena = Arena(sum(block.extent.length for block in blocks))
    views, at = [], 0
    for block in blocks:
        views.append(arena.view(at, block.extent.length))
        at += block.extent.length
    fill(bundle, blocks, views)
    return [bytes(view) for view in views]


def fill(bundle: Bundle, blocks: Sequence[Block], views: Sequence[memoryview], reader: Reader | None = None) -> None:
    """Read ``blocks``, neighbours, as the engine does, through ``reader`` (else threads), and wait for them."""
    parts = [Part(block.id, block.extent, Slot("", 0, block.extent.length)) for block in blocks]
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    with closing(reader or Threads(1)) as used:
        BundleFlash(bundle, used).read(parts, views, outcome.put)
        if (problem := outcome.get()) is not None:
            raise problem
