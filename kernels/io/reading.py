"""Asynchronous scatter reads: the interface of readers, and the reader that uses threads."""

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from typing import Protocol

from ..process.forks import FORKED, leave_at_fork, pause_at_fork
from ..waiting import Then, deliver, mark_thread, may_wait, no_waiting
from .directio import DirectFile, Segment, Transfer

_LONGEST_PAUSE = 5.0
"""Seconds that a fork waits at most for reads under way: a drive may be stuck."""


class BackendUnavailable(Exception):
    """This backend does not work on this machine. The message says why and what would change that."""


class ReaderClosed(ValueError):
    """A read was submitted to a closed reader."""


class Reader(Protocol):
    """Performs several reads at a time. Every method may be called from any thread, also from ``then``."""

    def submit(self, file: DirectFile, segments: Sequence[Segment], then: Then) -> None:
        """Start to fill every segment's buffer. The segments are adjacent in the file.

        ``then`` is called once, on a thread of the reader, when nothing will write to the buffers any more. It receives
        None when they are filled. Otherwise it receives ShortRead when the file ends early, OSError when the drive
        fails, ValueError for a buffer that is not aligned in memory; the buffers' content is then undefined. It should
        be fast and must not raise. Reads beyond the reader's depth wait for their turn.

        Raises ReaderClosed, and as ``DirectFile.begin``. It then never calls ``then``.
        """

    def close(self) -> None:
        """Let submitted reads land, and stop. Idempotent. It waits for them where ``may_wait``."""


class QueuedReader(ABC):
    """Base of readers: submitted reads wait in a queue, under a lock, for their turn.

    A drive that is delivering ``enough`` bytes gets no further read. Side by side, large reads would all land late and
    at the same time, and the drive would idle while they are used.
    """

    def __init__(self, enough: int | None = None) -> None:
        # Reentrant, see ``may_wait``. An executor's lock is not.
        self._lock = threading.RLock()
        self._waiting: deque[tuple[Transfer, Then]] = deque()
        self._closed = self._paused = False
        self._why_closed = "this reader is closed"
        self._enough = enough
        self._coming: Counter[int] = Counter()  # bytes in flight, by drive
        leave_at_fork(self)
        pause_at_fork(self)

    def pause(self) -> None:
        """As Reading.pause; no longer than a drive that works takes."""
        if not may_wait():
            return
        with no_waiting, self._lock:
            self._paused = True
        until = time.monotonic() + _LONGEST_PAUSE
        while any(self._coming.values()) and time.monotonic() < until:
            time.sleep(0.0005)

    def go_on(self) -> None:
        """As Reading.go_on."""
        with no_waiting, self._lock:
            self._paused = False
            for _ in self._waiting:
                self._wake()

    def leave_to_parent(self) -> None:
        """As Inherited.leave_to_parent."""
        self._lock = threading.RLock()
        self._waiting.clear()
        self._closed, self._why_closed = True, FORKED

    def submit(self, file: DirectFile, segments: Sequence[Segment], then: Then) -> None:
        """Submit a read, as Reader.submit."""
        transfer = file.begin(segments)
        with no_waiting, self._lock:
            if self._closed:
                transfer.end()
                raise ReaderClosed(self._why_closed)
            self._waiting.append((transfer, then))
            self._wake()

    @abstractmethod
    def _wake(self) -> None:
        """Note that one more read waits. Call it under the lock."""

    def _take(self) -> tuple[Transfer, Then] | None:
        """Take the first read that may begin, or None. Call it under the lock."""
        if self._paused:
            return None
        for place, (transfer, then) in enumerate(self._waiting):
            coming = self._coming[transfer.file.drive]
            if not coming or self._enough is None or coming + transfer.wanted <= self._enough:
                del self._waiting[place]
                self._coming[transfer.file.drive] += transfer.wanted
                return transfer, then
        return None

    def _ended(self, transfer: Transfer) -> None:
        """Note that a taken read no longer uses its drive. Call it under the lock."""
        self._coming[transfer.file.drive] -= transfer.wanted


class Threads(QueuedReader):
    """A reader with ``depth`` threads, each with one ``preadv`` at a time. It must be closed. See Reader."""

    def __init__(self, depth: int, enough: int | None = None) -> None:
        super().__init__(enough)
        self._changed = threading.Condition(self._lock)
        self._threads = [
            threading.Thread(target=self._run, name=f"penstock-io-{number}", daemon=True) for number in range(depth)
        ]
        for thread in self._threads:
            thread.start()

    def leave_to_parent(self) -> None:
        """As Inherited.leave_to_parent."""
        super().leave_to_parent()
        self._changed, self._threads = threading.Condition(self._lock), []

    def _wake(self) -> None:
        self._changed.notify()

    def close(self) -> None:
        """Close the reader, as Reader.close."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if may_wait():
            for thread in self._threads:
                thread.join()

    def _run(self) -> None:
        mark_thread()
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Perform a read as soon as there is one. Returns False if there will be none."""
        with self._changed:
            while (taken := self._take()) is None:
                if self._closed and not self._waiting:
                    return False
                self._changed.wait()
        transfer, then = taken
        problem: Exception | None = None
        try:
            transfer.read()
        except Exception as error:  # delivered to the caller
            problem = error
        with self._changed:
            self._ended(transfer)
            if self._waiting or self._closed:
                self._changed.notify_all()
        deliver(then, problem)
        return True
