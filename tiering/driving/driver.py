"""Starts the planner's reads; completions go back as events, on the thread that saw the bytes arrive."""

import threading
from collections.abc import Callable
from typing import Generic

from ...kernels.waiting import may_wait, no_waiting
from ..events import Event, Read, ReadDone, ReadFailed
from .background import Beside, Work
from .ports import Memory, Place, Source


class Driver(Generic[Place]):
    """``submit`` may be called from any thread; ``post`` is called with each completion, on a thread of the flash.

    Nothing lies between a read's end and its event, nor between an event and the reads that follow from it. The
    planner bounds the number of reads in flight, so every read is handed to the flash at once; none is ever cancelled,
    for the drive would go on writing into its slot. What ``post`` raises is a bug, left to the flash's thread; the
    other reads go on. ``beside``, if there is any, runs until the end, on the background loop.
    """

    def __init__(
        self,
        flash: Source[Place],
        memory: Memory[Place],
        post: Callable[[Event], None],
        *,
        beside: Work | None = None,
    ) -> None:
        self._flash, self._memory, self._post = flash, memory, post
        self._lock = threading.RLock()  # may be taken again by the thread that has it: see ``may_wait``
        self._idle = threading.Condition(self._lock)
        self._flying: set[int] = set()
        self._beside = None if beside is None else Beside(beside)

    def submit(self, read: Read) -> None:
        """Start ``read``; its completion is posted, whatever happens: from in here, where it cannot even start."""

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
            except Exception as error:  # handed to whoever waits for the blocks
                landed(error)
            except BaseException:  # an interrupt: nobody knows whether it started, and so whether it ever lands
                self._forget(read)
                raise

    def close(self) -> None:
        """End what runs beside, and let the reads in flight land: they write into the arena. Idempotent, from any
        thread.

        Nothing is posted once it has returned, unless it was called where it must not wait: the garbage collector may
        call it from a thread that performs reads, or is just handing one in.
        """
        if self._beside is not None:
            self._beside.close()
        if may_wait():
            with self._lock:
                self._idle.wait_for(lambda: not self._flying)

    def _forget(self, read: Read) -> None:
        with self._lock:
            self._flying.discard(read.read)
            if not self._flying:
                self._idle.notify_all()
