"""Between the compute threads and the planner: leases for them, reads for the driver, one lock over both."""

import itertools
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..tiering.driver import Driver
from ..tiering.errors import Closed
from ..tiering.events import Acquire, Action, Begin, Cancel, End, Event, Grant, Read, Refuse, Release, Slot
from ..tiering.planner import Counters, Planner
from ..tiering.ports import Flash, Memory
from ..tiering.units import BlockId

HOUSE = -1
"""The stream that holds the leases which are never given back."""


class Bridge:
    """Compute threads call ``acquire`` and ``release``; for resident blocks this is one lock and some dictionary work,
    with no thread hop. Only reads cross over to the driver's loop."""

    def __init__(self, planner: Planner, flash: Flash, memory: Memory, *, depth: int) -> None:
        self._planner = planner
        self._lock = threading.Lock()
        self._inboxes: dict[int, queue.SimpleQueue[Grant | Refuse]] = {}
        self._numbers = itertools.count()
        self._closed: Exception | None = None
        self._stall_seconds = 0.0
        self._driver = Driver(flash, memory, self._post, depth=depth)

    def acquire(self, blocks: Sequence[BlockId], stream: int | None = None) -> Iterator[tuple[BlockId, Slot]]:
        """Lease ``blocks`` for the calling thread, or for ``stream``; yields each as soon as it is in its slot.

        Those already resident come first, the others as they arrive. The caller releases each one. When the caller
        stops early, the rest is cancelled. Raises what the read raised, or Closed.
        """
        ticket = next(self._numbers)
        inbox: queue.SimpleQueue[Grant | Refuse] = queue.SimpleQueue()
        self._inboxes[ticket] = inbox
        left = len(blocks)
        try:
            self._post(Acquire(ticket, threading.get_ident() if stream is None else stream, tuple(blocks)))
            while left:
                try:
                    answer = inbox.get_nowait()
                except queue.Empty:
                    start = time.monotonic()
                    answer = inbox.get()
                    self._stall_seconds += time.monotonic() - start
                if isinstance(answer, Refuse):
                    raise answer.error
                left -= 1
                yield answer.block, answer.slot
        finally:
            if left and self._closed is None:
                self._post(Cancel(ticket))
            del self._inboxes[ticket]

    def release(self, block: BlockId) -> None:
        """Give back one lease of the calling thread."""
        if self._closed is None:
            self._post(Release(threading.get_ident(), block))

    def begin(self) -> None:
        """The calling thread enters the model's forward."""
        self._post(Begin(threading.get_ident()))

    def end(self) -> None:
        """The calling thread leaves the model's forward, in whatever way."""
        if self._closed is None:
            self._post(End(threading.get_ident()))

    def counters(self) -> Counters:
        """A copy of the planner's totals."""
        with self._lock:
            return replace(self._planner.counters)

    @property
    def stall_seconds(self) -> float:
        """Seconds that compute threads have waited for blocks, summed over threads."""
        return self._stall_seconds

    def check_integrity(self) -> None:
        with self._lock:
            self._planner.check_integrity()

    def close(self) -> None:
        """Refuse all who wait, let the reads in flight land, stop the driver. Idempotent."""
        with self._lock:
            self._stop(Closed("this model was closed; load it again to use it"))
        self._driver.close()

    def _stop(self, reason: Exception) -> None:
        self._closed = self._closed or reason
        for inbox in self._inboxes.values():
            inbox.put(Refuse(-1, self._closed))

    def _post(self, event: Event) -> None:
        with self._lock:
            if self._closed is not None:
                if isinstance(event, Acquire | Begin):
                    raise self._closed
                return
            try:
                self._perform(self._planner.handle(event, time.monotonic()))
            except BaseException:  # an interrupt half-way leaves the accounts unknown: go no further
                self._stop(Closed("this model was interrupted in the middle of its accounts; load it again to use it"))
                raise

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Read):
                self._driver.submit(action)
            else:
                inbox = self._inboxes.get(action.ticket)
                if inbox is not None:
                    inbox.put(action)
