"""Processes that share a prefix store: some are killed while they write; run as a module.

prefix_child kill STORE N        N writers one after the other, killed at random moments; prints how many were
prefix_child together STORE N    N readers and writers at once within a small quota; prints how much they found
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from penstock.tiering.prefix.chain import Chain
from penstock.tiering.store.prefixes.prefixes import PrefixStore
from penstock.tiering.units import KiB, MiB
from tests.support.prefixes import chain, load, save

QUOTA = 512 * KiB


def prompt(seed: int) -> Chain:
    chance = random.Random(seed)
    return chain(*(chance.randrange(2) for _ in range(8)), seed)


def forked(work: object, *arguments: object) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        work(*arguments)  # type: ignore[operator]
        code = 0
    finally:
        os._exit(code)


def write_all(folder: Path, seed: int) -> None:
    store = PrefixStore(folder, 10 * MiB)
    for number in range(seed, 10**6):
        save(store, prompt(number % 40))
        if number % 40 == 39:
            store.prune(everything=True)


def kill(folder: Path, count: int) -> int:
    chance, killed = random.Random(1), 0
    for number in range(count):
        child = forked(write_all, folder, number)
        time.sleep(chance.uniform(0.02, 0.25))  # the moment is what is random
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    return killed


def use(folder: Path, number: int, pipe: int) -> None:
    chance, store, hits = random.Random(number), PrefixStore(folder, QUOTA), 0
    for _ in range(40):
        wanted = prompt(chance.randrange(12))
        hits += load(store, wanted)
        save(store, wanted, state=chance.random() < 0.3)
        assert store.used_bytes() <= QUOTA
    os.write(pipe, f"{hits}\n".encode())


def together(folder: Path, count: int) -> int:
    back, out = os.pipe()
    children = [forked(use, folder, number, out) for number in range(count)]
    for child in children:
        if os.waitpid(child, 0)[1]:
            sys.exit("a process failed")
    os.close(out)
    with open(back) as lines:
        return sum(map(int, lines))


if __name__ == "__main__":
    print({"kill": kill, "together": together}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3])))
