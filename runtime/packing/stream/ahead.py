"""Encodes matrices before they are asked for, on all cores, within a bound of memory."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
Key = tuple[str, int | None]
"""A matrix: its name, and its expert if it is one's."""


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """A matrix to encode, or to measure: its ``key``, the most bytes of memory that this takes, and ``read``, which
    reads its weights and returns what works with them."""

    key: Key
    size: int
    read: Callable[[], Callable[[], T]]


class Ahead(Generic[T]):
    """Has threads encode matrices, or measure them, in the order in which they will be asked for.

    ``take`` reads: it is for one thread, and weights are read in that order."""

    def __init__(self, room: int, threads: int) -> None:
        """Encoded matrices that nobody took yet have at most ``room`` bytes. Larger ones are left out."""
        self._room, self._taken, self._most = room, 0, 2 * threads
        self._works: Iterator[Work[T]] = iter(())
        self._next: Work[T] | None = None
        self._begun: dict[Key, tuple[Future[T], int]] = {}
        self._pool = ThreadPoolExecutor(threads, "penstock-encode", initializer=_compute_alone)

    def expect(self, works: Iterable[Work[T]]) -> None:
        """``works`` will be asked for, in this order, and nothing else of what was expected before."""
        self._drop()
        self._works = (work for work in works if work.size <= self._room)
        self._next = next(self._works, None)

    def take(self, key: Key) -> T | None:
        """Return the result of a matrix, None if it was not expected or was left out. Raises the errors of its format,
        and of reading those that follow."""
        self._fill()
        begun, size = self._begun.pop(key, (None, 0))
        if begun is None:
            return None
        try:
            return begun.result()
        finally:
            self._taken -= size

    def close(self) -> None:
        """Wait for what is being encoded, and leave the rest. Idempotent."""
        self._next = None
        self._drop()
        self._pool.shutdown()

    def _drop(self) -> None:
        for begun, _ in self._begun.values():
            begun.cancel()
        self._begun.clear()
        self._taken = 0

    def _fill(self) -> None:
        while (work := self._next) is not None and len(self._begun) < self._most:
            if self._taken + work.size > self._room:
                return
            self._next = next(self._works, None)
            self._begun[work.key] = self._pool.submit(work.read()), work.size
            self._taken += work.size


def _compute_alone() -> None:
    """In threads that share the cores by matrices, none has helpers of its own. Whoever makes them gives the number
    back for threads to come (threads.py)."""
    torch.set_num_threads(1)
