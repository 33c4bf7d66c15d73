"""Starts the planner's reads; completions go back as events, on whatever thread saw the bytes arrive."""

import threading
from collections.abc import Callable

from ..kernels.reading import may_wait
from .events import Event, Read, ReadDone, ReadFailed
from .ports import Flash, Memory


class Driver:
    """``submit`` may be called from any thread; ``post`` is called with each completion, on a thread of the flash.

    Nothing lies between a read's end and its event, nor between the event and the reads that follow from it. The
    planner bounds the number of reads in flight, so every read is handed to the flash at once; none is ever cancelled,
    for the drive would go on writing into its slot.
    """

    def __init__(self, flash: Flash, memory: Memory, post: Callable[[Event], None]) -> None:
        self._flash, self._memory, self._post = flash, memory, post
        self._idle = threading.Condition()
        self._in_flight = 0

    def submit(self, read: Read) -> None:
        """Start ``read``; its completion is posted, whatever happens. Where it cannot even start, from in here."""

        def landed(error: Exception | None) -> None:
            try:
                self._post(ReadDone(read.read) if error is None else ReadFailed(read.read, error))
            finally:
                with self._idle:
                    self._in_flight -= 1
                    self._idle.notify_all()

        with self._idle:
            self._in_flight += 1
        try:
            into = [self._memory.view(part.slot.offset, part.slot.length) for part in read.parts]
            self._flash.read(read.parts, into, landed)
        except Exception as error:  # handed to whoever waits for the blocks
            landed(error)

    def close(self) -> None:
        """Let the reads in flight land: they write into the arena. Idempotent, from any thread.

        The garbage collector may call it from a thread that performs reads, which then does not wait.
        """
        if may_wait():
            with self._idle:
                self._idle.wait_for(lambda: self._in_flight == 0)
