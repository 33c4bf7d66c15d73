"""Asynchronous scatter reads: one interface over the ways of reading a file, and the way with threads."""

import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from typing import Protocol

from ..waiting import Then, deliver, mark_thread, may_wait, no_waiting
from .directio import DirectFile, Segment, Transfer


class BackendUnavailable(Exception):
    """This way of reading does not work on this machine; the message says why and what would change that."""


class ReaderClosed(ValueError):
    """A read was submitted to a reader that is closed."""


class Reader(Protocol):
    """Performs reads, some of them at the same time. Every method may be called from any thread, ``then`` included."""

    def submit(self, file: DirectFile, segments: Sequence[Segment], then: Then) -> None:
        """Start to fill every segment's buffer; segments lie one after the other in the file without a gap.

        ``then`` is called once, on a thread of the reader, when nothing will write to the buffers any more: with None
        when they are filled, else with ShortRead when the file ends before, OSError when the drive fails, ValueError
        for a buffer that is not aligned in memory; their content is undefined then. It should not take long and must
        not raise. Reads beyond the reader's depth wait for their turn.

        Raises, and never calls ``then``: ReaderClosed, and what ``DirectFile.begin`` raises.
        """

    def close(self) -> None:
        """Let what was submitted land, and stop. Idempotent; it waits for that where ``may_wait``."""


class QueuedReader(ABC):
    """What readers have in common: what is submitted waits, under a lock, for its turn.

    A drive that delivers ``enough`` bytes gets no further read beside them: side by side, large reads would all land
    late, at the same time, and while they are used the drive would idle.
    """

    def __init__(self, enough: int | None = None) -> None:
        # May be taken again by the thread that has it: see ``may_wait``. An executor's may not.
        self._lock = threading.RLock()
        self._waiting: deque[tuple[Transfer, Then]] = deque()
        self._closed = False
        self._enough = enough
        self._coming: Counter[int] = Counter()  # bytes on their way, by drive

    def submit(self, file: DirectFile, segments: Sequence[Segment], then: Then) -> None:
        """As Reader.submit."""
        transfer = file.begin(segments)
        with no_waiting, self._lock:
            if self._closed:
                transfer.end()
                raise ReaderClosed("this reader is closed")
            self._waiting.append((transfer, then))
            self._wake()

    @abstractmethod
    def _wake(self) -> None:
        """One more read waits; under the lock."""

    def _take(self) -> tuple[Transfer, Then] | None:
        """The first read that may begin, if there is one; under the lock."""
        for place, (transfer, then) in enumerate(self._waiting):
            coming = self._coming[transfer.file.drive]
            if not coming or self._enough is None or coming + transfer.wanted <= self._enough:
                del self._waiting[place]
                self._coming[transfer.file.drive] += transfer.wanted
                return transfer, then
        return None

    def _ended(self, transfer: Transfer) -> None:
        """What was taken needs its drive no more; under the lock."""
        self._coming[transfer.file.drive] -= transfer.wanted


class Threads(QueuedReader):
    """Reads with ``depth`` threads, each in one ``preadv`` at a time. Has to be closed. As Reader."""

    def __init__(self, depth: int, enough: int | None = None) -> None:
        super().__init__(enough)
        self._changed = threading.Condition(self._lock)
        self._threads = [
            threading.Thread(target=self._run, name=f"penstock-io-{number}", daemon=True) for number in range(depth)
        ]
        for thread in self._threads:
            thread.start()

    def _wake(self) -> None:
        self._changed.notify()

    def close(self) -> None:
        """As Reader.close."""
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
        """Perform a read, as soon as there is one; False where there will be none."""
        with self._changed:
            while (taken := self._take()) is None:
                if self._closed and not self._waiting:
                    return False
                self._changed.wait()
        transfer, then = taken
        problem: Exception | None = None
        try:
            transfer.read()
        except Exception as error:  # handed to whoever asked
            problem = error
        with self._changed:
            self._ended(transfer)
            if self._waiting or self._closed:
                self._changed.notify_all()
        deliver(then, problem)
        return True
