"""The drive itself: reads the blocks that penstock reads, as many at a time, and does nothing else with them.

    python bench/drive.py BUNDLE [--depth 2] [--rounds 5]

By itself it says how fast that is, in turn with nothing else going on and while every core reads memory, as products
do: what the drive delivers goes through the same memory.
"""

import argparse
import itertools
import random
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from figures import Spread

from penstock.kernels.machine.machine import count_usable_cores
from penstock.kernels.memory.arena import Arena
from penstock.tiering.store.bundle.manifest import Block
from penstock.tiering.store.bundle.reader import Bundle


def drive_speed(bundle: Path, streamed: Collection[str], *, depth: int, seconds: float = 2.0) -> float:
    """Measure the bytes per second of whole blocks of ``bundle``, with ``depth`` reads in flight, for ``seconds``.
    Reads are direct, and nothing is checked.

    The blocks are its experts in random order. If it has none, they are the dense blocks named ``streamed``, one after
    the other and round again.
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


@contextmanager
def busy_memory() -> Iterator[None]:
    """Have every core read memory meanwhile, much more of it than caches hold."""
    over = threading.Event()
    size = 64 << 20

    def work() -> None:
        torch.set_num_threads(1)
        numbers = torch.zeros(size // 8, dtype=torch.int64)
        while not over.is_set():
            numbers.sum()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(count_usable_cores())]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def main() -> None:
    """Measure the drive alone, and while every core reads memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--depth", type=int, default=2, help="reads in flight")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with Bundle.open(options.bundle) as bundle:
        modules = {block.id.module for block in bundle.manifest.blocks}
    alone, beside = [], []
    for _ in range(options.rounds):
        alone.append(drive_speed(options.bundle, modules, depth=options.depth) / 1e9)
        with busy_memory():
            beside.append(drive_speed(options.bundle, modules, depth=options.depth) / 1e9)
    print(f"alone {Spread.of(alone).text(2)} GB/s, while memory is read {Spread.of(beside).text(2)} GB/s")


if __name__ == "__main__":
    main()
