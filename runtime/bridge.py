"""Between the compute threads and the planner: leases for them, reads for the driver, one lock over both."""

import functools
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import replace

from ..tiering.driver import Driver
from ..tiering.errors import Closed
from ..tiering.events import (
    Acquire,
    Action,
    Begin,
    Cancel,
    Discard,
    End,
    Event,
    Grant,
    Read,
    Refuse,
    Release,
    Resize,
    Slot,
)
from ..tiering.planner import Counters, Planner
from ..tiering.ports import Flash, Memory
from ..tiering.units import BlockId

HOUSE = -1
"""The stream that holds the leases which are never given back."""


class Bridge:
    """Compute threads call ``acquire`` and ``release``; for resident blocks this is one lock and some dictionary work,
    with no thread hop. Only reads cross over to the driver's loop."""

    def __init__(
        self,
        planner: Planner,
        flash: Flash,
        memory: Memory,
        *,
        depth: int,
        watch: "Callable[[Bridge], Coroutine[None, None, None]] | None" = None,
    ) -> None:
        """``watch`` runs on the driver's loop; it may resize the bridge."""
        self._planner, self._memory = planner, memory
        self._lock = threading.RLock()
        self._busy = False
        self._late: deque[Event] = deque()
        self._inboxes: dict[int, tuple[int, queue.SimpleQueue[Grant | Refuse]]] = {}  # by ticket, with the stream
        self._numbers = itertools.count()
        self._closed: str | None = None
        self._stall_seconds = 0.0
        beside = None if watch is None else functools.partial(watch, self)
        with self._lock:  # nothing is posted before the driver is there to read
            self._driver = Driver(flash, memory, self._post, depth=depth, beside=beside)

    def acquire(
        self, blocks: Sequence[BlockId], stream: int | None = None
    ) -> Generator[tuple[BlockId, Slot], None, None]:
        """Lease ``blocks`` for the calling thread, or for ``stream``; yields each as soon as it is in its slot.

        Those already resident come first, the others as they arrive. The caller releases each one. When the caller
        closes the generator early, the rest is cancelled and what was not taken yet is given back. Raises what the read
        raised, or Closed.
        """
        ticket = next(self._numbers)
        stream = threading.get_ident() if stream is None else stream
        inbox: queue.SimpleQueue[Grant | Refuse] = queue.SimpleQueue()
        self._inboxes[ticket] = (stream, inbox)
        left = len(blocks)
        try:
            self._post(Acquire(ticket, stream, tuple(blocks)))
            while left:
                try:
                    answer = inbox.get_nowait()
                except queue.Empty:
                    start = time.monotonic()
                    answer = inbox.get()
                    with self._lock:
                        self._stall_seconds += time.monotonic() - start
                if isinstance(answer, Refuse):
                    raise answer.error
                left -= 1
                yield answer.block, answer.slot
        finally:
            if left and ticket in self._inboxes:
                self._withdraw(ticket, stream, inbox)
            self._inboxes.pop(ticket, None)

    def _withdraw(self, ticket: int, stream: int, inbox: "queue.SimpleQueue[Grant | Refuse]") -> None:
        self._post(Cancel(ticket))
        while not inbox.empty():
            answer = inbox.get_nowait()
            if isinstance(answer, Grant):
                self._post(Release(stream, answer.block))

    def release(self, block: BlockId) -> None:
        """Give back one lease of the calling thread."""
        if self._closed is None:
            self._post(Release(threading.get_ident(), block))

    def acquire_resident(self, block: BlockId) -> Slot | None:
        """Lease ``block`` for the calling thread if it is in memory now; reads nothing."""
        with self._lock:
            if self._planner.residency.slot(block) is None:
                return None
            ((_, slot),) = self.acquire([block])
            return slot

    def resize(self, limits: Mapping[str, int]) -> None:
        """Let the regions named use so many bytes. What is over goes as soon as nobody computes on it."""
        self._post(Resize(limits))

    def begin(self) -> None:
        """The calling thread enters the model's forward."""
        self._post(Begin(threading.get_ident()))

    def end(self) -> None:
        """The calling thread leaves the model's forward, in whatever way; its leases go."""
        me = threading.get_ident()
        for ticket, (stream, _) in tuple(self._inboxes.items()):
            if stream == me:  # the generator lives on in a traceback; it has nothing to give back any more
                self._inboxes.pop(ticket, None)
        if self._closed is None:
            self._post(End(me))

    def counters(self) -> Counters:
        """A copy of the planner's totals."""
        with self._lock:
            return replace(self._planner.counters)

    def resident_bytes(self) -> int:
        """Bytes of blocks that are in memory or on their way."""
        with self._lock:
            return self._planner.residency.used_bytes

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
            self._stop("this model was closed; load it again to use it")
        self._driver.close()

    def _stop(self, reason: str) -> None:
        self._closed = self._closed or reason
        for ticket, (_, inbox) in tuple(self._inboxes.items()):
            inbox.put(Refuse(ticket, Closed(self._closed)))

    def _post(self, event: Event) -> None:
        with self._lock:
            if self._closed is not None:
                if isinstance(event, Acquire | Begin):
                    raise Closed(self._closed)
                return
            self._late.append(event)
            if self._busy:  # the garbage collector closed a generator while this thread was in here
                return
            self._busy = True
            try:
                while self._late:
                    self._perform(self._planner.handle(self._late.popleft(), time.monotonic()))
            except BaseException as error:  # an interrupt half-way leaves the accounts unknown: go no further
                self._stop(f"this model was interrupted in the middle of its accounts by {error!r}; load it again")
                raise
            finally:
                self._busy = False

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Read):
                self._driver.submit(action)
            elif isinstance(action, Discard):
                self._memory.discard(action.offset, action.length)
            else:
                _, inbox = self._inboxes.get(action.ticket, (None, None))
                if inbox is not None:
                    inbox.put(action)
