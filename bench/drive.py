"""The drive itself: reads the blocks that penstock reads, as many at a time, and does nothing else with them."""

import itertools
import random
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from penstock.kernels.arena import Arena
from penstock.tiering.store.manifest import Block
from penstock.tiering.store.reader import Bundle


def drive_speed(bundle: Path, streamed: Collection[str], *, depth: int, seconds: float = 2.0) -> float:
    """Bytes per second of whole blocks of ``bundle``, ``depth`` in flight, for ``seconds``; direct, unchecked.

    The blocks are its experts in random order; if it has none, its dense blocks named ``streamed``, one after the
    other and round again.
    """
    with Bundle.open(bundle) as opened:
        blocks = opened.manifest.blocks
        experts = [block for block in blocks if block.id.kind == "expert"]
        wanted = experts or [block for block in blocks if block.id.module in streamed]
        step = max(block.extent.length for block in wanted)
        arena = Arena(step * depth)
        arena.tensor(0, torch.uint8, (arena.length,)).fill_(1)  # no first touch while the clock runs
        turns = _shuffled(wanted) if experts else itertools.cycle(wanted)
        lock = threading.Lock()

        def read(worker: int) -> int:
            done = 0
            while time.perf_counter() < deadline:
                with lock:
                    block = next(turns)
                opened.read_rows(block, 0, arena.view(worker * step, block.extent.length))
                done += block.extent.length
            return done

        with ThreadPoolExecutor(depth) as pool:
            start = time.perf_counter()
            deadline = start + seconds
            done = sum(pool.map(read, range(depth)))
            return done / (time.perf_counter() - start)


def _shuffled(blocks: list[Block]) -> Iterator[Block]:
    chance = random.Random(0)
    while True:
        yield from chance.sample(blocks, len(blocks))
