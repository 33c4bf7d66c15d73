"""Read rates of open files: random reads of given sizes and depths, by every backend in turn."""

import random
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch

from ..io.backends import open_reader
from ..io.directio import DirectFile, Segment
from ..io.reading import Reader
from ..memory.arena import Arena
from ..memory.page import PAGE


@dataclass(frozen=True, slots=True)
class ReadRate:
    """The rate of random reads of ``size`` bytes at queue depth ``depth`` by ``backend``: that of its best round.
    ``spread`` is the share by which the median of the rounds is below that."""

    size: int
    depth: int
    bytes_per_second: float
    backend: str = "threads"
    spread: float = 0.0


def read_rates(
    files: Mapping[str, Sequence[DirectFile]],
    cells: Iterable[tuple[int, int]],
    seconds_each: float,
    *,
    rounds: int = 1,
) -> list[ReadRate]:
    """Measure read rates for each size and depth in ``cells``, and for each backend, a key of ``files``.

    A backend reads at random page-aligned offsets of its files, for ``seconds_each`` in total. The backends take turns
    within a cell, and the cells within a round. The best round counts, because other activity only slows reads down. On
    a very slow drive, cells that are left after twice the planned time are not measured.

    Sizes are bytes, PAGE multiples, and at most as long as the shortest file. The largest size times depth is the
    memory that this takes. Raises OSError when the drive fails, BackendUnavailable.
    """
    cells = list(cells)
    late = time.perf_counter() + 2 * seconds_each * len(cells) * len(files)
    arena = Arena(max(size * depth for size, depth in cells))
    # Touch the memory before the clock runs.
    arena.tensor(0, torch.uint8, (arena.length,)).zero_()
    found: dict[tuple[int, int, str], list[float]] = {}
    with ExitStack() as readers:
        deepest = max(depth for _, depth in cells)
        opened = {backend: readers.enter_context(closing(open_reader(backend, deepest))) for backend in files}
        for size, depth in cells * rounds:
            if found and time.perf_counter() > late:
                break
            for backend, reader in opened.items():
                rate = _rate(reader, files[backend], arena, size, depth, seconds_each / rounds)
                found.setdefault((size, depth, backend), []).append(rate)
    return [
        ReadRate(size, depth, max(rates), backend, 1 - statistics.median(rates) / max(rates))
        for (size, depth, backend), rates in found.items()
    ]


def _rate(reader: Reader, files: Sequence[DirectFile], arena: Arena, size: int, depth: int, seconds: float) -> float:
    """Return the bytes per second of ``depth`` chains of reads. Each read begins as the one before it lands."""
    chains = [_Chain(reader, files, arena.view(number * size, size), number) for number in range(depth)]
    start = time.perf_counter()
    for chain in chains:
        chain.deadline = start + seconds
        chain.go()
    done = sum(chain.result() for chain in chains)
    return done / (time.perf_counter() - start)


class _Chain:
    """Successive reads into one buffer until the deadline, at least one."""

    def __init__(self, reader: Reader, files: Sequence[DirectFile], buffer: memoryview, seed: int) -> None:
        self._reader, self._files, self._buffer = reader, files, buffer
        self._chance, self._lengths = random.Random(seed), [file.length for file in files]
        self._ended, self._bytes = threading.Event(), 0
        self._problem: Exception | None = None
        self.deadline = 0.0

    def go(self) -> None:
        """Begin a read. The next ones follow on the reader's threads."""
        (file,) = self._chance.choices(self._files, self._lengths)
        offset = self._chance.randint(0, (file.length - len(self._buffer)) // PAGE) * PAGE
        self._reader.submit(file, [Segment(offset, self._buffer)], self._then)

    def result(self) -> int:
        """Return the bytes read, after the last read has landed. Raises the error of a read."""
        self._ended.wait()
        if self._problem is not None:
            raise self._problem
        return self._bytes

    def _then(self, problem: Exception | None) -> None:
        self._problem = problem
        if problem is None:
            self._bytes += len(self._buffer)
            if time.perf_counter() < self.deadline:
                self.go()
                return
        self._ended.set()
