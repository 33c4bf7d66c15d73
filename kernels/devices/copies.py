"""Copies from host memory to a device, in the order of requests, while the device computes and the drive reads.

The requesting thread begins them. They end on a thread of their own, which calls back. Nothing waits for the whole
device. cuda.py and emulated.py do the single copy.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..waiting import deliver, mark_thread, no_waiting

WaitForCopy = Callable[[], None]
"""Returns when a copy has ended. Raises the copy's error."""
BeginCopy = Callable[[torch.Tensor, torch.Tensor, Sequence[Any]], WaitForCopy]
"""Begins the copy of ``source`` to ``target`` behind some marks. See Copies.up."""
CopyDone = Callable[[Exception | None], None]


class Copied(NamedTuple):
    """Totals of finished copies: bytes, and seconds in which at least one copy was running."""

    size: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes per second, 0 while nothing is known."""
        return self.size / self.seconds if self.seconds else 0.0


NOTHING = Copied(0, 0.0)


class Copies:
    """A queue of copies to a device. Any thread may use it."""

    def __init__(self, begin: BeginCopy) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._ends: queue.SimpleQueue[tuple[WaitForCopy, CopyDone, int, float] | None] = queue.SimpleQueue()
        self._copied = NOTHING
        self._asked = self._ended = 0  # bytes
        self._thread = threading.Thread(target=self._end_all, name="penstock-copies", daemon=True)
        self._closed = False
        self._thread.start()

    def up(self, source: torch.Tensor, target: torch.Tensor, after: Sequence[Any], done: CopyDone) -> None:
        """Copy ``source``, bytes in host memory, to ``target``, the same length on the device, behind ``after``.

        The copy waits for the marks ``after``. ``done`` is called on the copies' thread, with None when the bytes have
        arrived, or with the error. It must not raise.
        """
        with no_waiting, self._lock:
            try:
                wait = self._begin(source, target, after)
            except Exception as error:  # reported on the copies' thread: the caller may hold locks
                wait = _failed(error)
            self._asked += source.nbytes
            self._ends.put((wait, done, source.nbytes, time.monotonic()))

    def later(self, call: Callable[[], None]) -> None:
        """Run ``call`` on the copies' thread, after the ends of the copies requested before."""
        self._ends.put((_nothing, lambda _: call(), 0, time.monotonic()))

    @property
    def copied(self) -> Copied:
        """The totals of finished copies."""
        return self._copied

    @property
    def queued(self) -> int:
        """The bytes of copies that were requested and have not ended, at some moment during the call."""
        return max(0, self._asked - self._ended)

    def close(self) -> None:
        """Let running copies end, and stop the thread. Idempotent."""
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


def _failed(error: Exception) -> WaitForCopy:
    def wait() -> None:
        raise error

    return wait
