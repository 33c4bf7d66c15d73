"""The driver: starts the planner's reads, and posts their completions as events."""

import threading
from collections.abc import Callable
from typing import Generic

from ...kernels.process.forks import leave_at_fork
from ...kernels.process.interrupts import may_be_interrupted
from ...kernels.waiting import may_wait, no_waiting
from ..events import Event, Read, ReadDone, ReadFailed
from .background import BackgroundTask, Work
from .ports import BlockSource, Place, TierMemory


class Driver(Generic[Place]):
    """``submit`` may be called from any thread; ``post`` is called with each completion, on a thread of the flash.

    A completion is posted on the thread that saw the bytes arrive, and the reads that follow start there. The planner
    bounds the reads in flight, so every read goes to the flash at once. No read is cancelled, since the drive would go
    on writing into its slot. An error raised by ``post`` is a bug, left to the flash's thread. Other reads go on. The
    task ``beside``, if given, runs until ``close``, on the background loop.
    """

    def __init__(
        self,
        flash: BlockSource[Place],
        memory: TierMemory[Place],
        post: Callable[[Event], None],
        *,
        beside: Work | None = None,
    ) -> None:
        self._flash, self._memory, self._post = flash, memory, post
        self._lock = threading.RLock()  # may be taken again by the thread that has it: see ``may_wait``
        self._idle = threading.Condition(self._lock)
        self._flying: set[int] = set()
        self._beside = None if beside is None else BackgroundTask(beside)
        leave_at_fork(self)

    def leave_to_parent(self) -> None:
        """As Inherited.leave_to_parent."""
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._flying.clear()
        self._beside = None

    def submit(self, read: Read) -> None:
        """Start ``read``. Its completion is always posted, from inside this call if it cannot start."""

        def landed(error: Exception | None) -> None:
            try:
                self._post(ReadDone(read.read) if error is None else ReadFailed(read.read, error))
            finally:
                self._forget(read)

        with no_waiting:
            try:
                with self._lock:
                    self._flying.add(read.read)
                into = [self._memory.view(part.slot.offset, part.slot.length) for part in read.parts]
                self._flash.read(read.parts, into, landed)
            except Exception as error:  # handed to the streams that wait for the blocks
                landed(error)
            except BaseException:  # an interrupt: the read may or may not have started
                self._forget(read)
                raise

    def close(self) -> None:
        """End the background task, and let the reads in flight land: they write into the arena. Idempotent, from any
        thread.

        Afterwards nothing is posted, unless it was called where it must not wait: the garbage collector may call it
        from a thread that performs or submits reads.
        """
        if self._beside is not None:
            self._beside.close()
        if may_wait():
            self._wait_until_idle()

    @may_be_interrupted
    def _wait_until_idle(self) -> None:
        with self._lock:
            self._idle.wait_for(lambda: not self._flying)

    def _forget(self, read: Read) -> None:
        with self._lock:
            self._flying.discard(read.read)
            if not self._flying:
                self._idle.notify_all()
