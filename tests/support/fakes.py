"""In-memory fakes of the ports of the driver, with faults on request."""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence

from penstock.kernels.waiting import mark_thread
from penstock.tiering.events import Part
from penstock.tiering.units import BlockId


def pattern(block: BlockId, length: int) -> bytes:
    """``length`` bytes that identify ``block`` at every position."""
    seed = hashlib.blake2b(str(block).encode(), digest_size=16).digest()
    return (seed * (length // len(seed) + 1))[:length]


class FakeMemory:
    """An arena of ``length`` bytes."""

    def __init__(self, length: int) -> None:
        self._bytes = bytearray(length)

    def view(self, offset: int, length: int) -> memoryview:
        return memoryview(self._bytes)[offset : offset + length]

    def discard(self, offset: int, length: int) -> None:
        """As TierMemory.discard."""
        self._bytes[offset : offset + length] = bytes(length)


class FakeMachine:
    """A machine with ``available`` of ``total`` bytes free, both set by the test. ``asked`` is released at each
    call."""

    def __init__(self, available: int, total: int) -> None:
        self.available, self.total = available, total
        self.asked = threading.Semaphore(0)

    def memory(self) -> tuple[int, int]:
        """As Machine.memory."""
        self.asked.release()
        return self.available, self.total


class FakeFlash:
    """A drive on which each block holds its ``pattern``. Thread-safe.

    ``gate`` holds reads back while it is cleared. ``started`` is released once for every read, so that a test can wait
    for it. ``reads`` logs the blocks of each read. A read first spoils the bytes that it fills, as a drive does that
    writes in any order. It lets other threads run ``ticks`` times: its duration, without a clock.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)
        self.reads: list[tuple[BlockId, ...]] = []
        self.ticks = 1
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._faults: dict[BlockId, tuple[Exception, int | None]] = {}

    def fail(self, block: BlockId, error: Exception, *, times: int | None = None) -> None:
        """Reads of ``block`` raise ``error``: the next ``times`` of them, or all."""
        with self._lock:
            self._faults[block] = (error, times)

    def read(
        self, parts: Sequence[Part], into: Sequence[memoryview], landed: Callable[[Exception | None], None]
    ) -> None:
        """As BlockSource.read."""
        thread = threading.Thread(target=self._perform, args=(parts, into, landed), daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait for the threads of all reads so far, of their callbacks and of the reads that these begin."""
        while True:
            with self._lock:
                threads, self._threads = self._threads, []
            if not threads:
                return
            for thread in threads:
                thread.join()

    def _perform(
        self, parts: Sequence[Part], into: Sequence[memoryview], landed: Callable[[Exception | None], None]
    ) -> None:
        mark_thread()
        with self._lock:
            self.reads.append(tuple(part.block for part in parts))
        for view in into:
            view[:] = bytes([0xEE]) * len(view)
        self.started.release()
        for _ in range(self.ticks):
            time.sleep(0)
        self.gate.wait()
        for part, view in zip(parts, into, strict=True):
            error = self._fault(part.block)
            if error is not None:
                landed(error)
                return
            view[:] = pattern(part.block, part.extent.length)
        landed(None)

    def _fault(self, block: BlockId) -> Exception | None:
        with self._lock:
            error, times = self._faults.get(block, (None, 0))
            if error is not None and times is not None:
                if times > 1:
                    self._faults[block] = (error, times - 1)
                else:
                    del self._faults[block]
            return error
