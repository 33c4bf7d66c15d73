"""Copies from host memory to a device, in the order asked for, while the device computes and the drive reads.

They are begun by whoever asks and end on a thread of their own, which tells who asked. Nothing waits for the device as
a whole.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..waiting import deliver, mark_thread, no_waiting

Wait = Callable[[], None]
"""Returns when a copy has ended; raises what it ran into."""
Begin = Callable[[torch.Tensor, torch.Tensor, Sequence[Any]], Wait]
"""Begins the copy of ``source`` to ``target`` behind some marks; see Copies.up."""
Done = Callable[[Exception | None], None]


class Copied(NamedTuple):
    """What has been copied: bytes, and seconds in which at least one copy was under way."""

    size: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes per second; 0 while nothing is known."""
        return self.size / self.seconds if self.seconds else 0.0


NOTHING = Copied(0, 0.0)


class Copies:
    """Any thread may ask; ``close`` is idempotent and lets copies under way end."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._ends: queue.SimpleQueue[tuple[Wait, Done, int, float] | None] = queue.SimpleQueue()
        self._copied = NOTHING
        self._asked = self._ended = 0  # bytes
        self._thread = threading.Thread(target=self._end_all, name="penstock-copies", daemon=True)
        self._closed = False
        self._thread.start()

    def up(self, source: torch.Tensor, target: torch.Tensor, after: Sequence[Any], done: Done) -> None:
        """Copy ``source``, bytes in host memory, to ``target``, as many on the device, once the marks ``after`` are
        reached. ``done`` is called on the copies' thread when the bytes are there, or with what went wrong; it must not
        raise."""
        with no_waiting, self._lock:
            try:
                wait = self._begin(source, target, after)
            except Exception as error:  # told where ends are told: who asks may have locks
                wait = _failed(error)
            self._asked += source.nbytes
            self._ends.put((wait, done, source.nbytes, time.monotonic()))

    def later(self, call: Callable[[], None]) -> None:
        """Have ``call`` run on the copies' thread, behind the ends of the copies asked for before."""
        self._ends.put((_nothing, lambda _: call(), 0, time.monotonic()))

    @property
    def copied(self) -> Copied:
        return self._copied

    @property
    def queued(self) -> int:
        """Bytes whose copies have been asked for and have not ended, at some moment during the call."""
        return max(0, self._asked - self._ended)

    def close(self) -> None:
        with no_waiting, self._lock:
            if not self._closed:
                self._closed = True
                self._ends.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _end_all(self) -> None:
        mark_thread()
        ended = 0.0
        while (copy := self._ends.get()) is not None:
            wait, done, size, asked = copy
            error = None
            try:
                wait()
            except Exception as raised:
                error = raised
            now = time.monotonic()
            if error is None and size:
                self._copied = Copied(self._copied.size + size, self._copied.seconds + now - max(asked, ended))
            ended = now
            self._ended += size
            del copy, wait  # they hold tensors
            deliver(done, error)
            del done, error


def _nothing() -> None: ...


def _failed(error: Exception) -> Wait:
    def wait() -> None:
        raise error

    return wait
