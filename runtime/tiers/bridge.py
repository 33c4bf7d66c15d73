"""The bridge between compute threads and the planner: leases for the threads, reads for the driver, one lock."""

import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ...kernels.process.ending import ENDING, waits
from ...kernels.process.forks import FORKED, leave_at_fork
from ...kernels.process.interrupts import SHIELD, may_be_interrupted
from ...kernels.waiting import no_waiting
from ...tiering.driving.driver import Driver
from ...tiering.driving.ports import BlockSource, Place, TierMemory
from ...tiering.errors import Closed, Forked
from ...tiering.events import (
    Acquire,
    Action,
    Begin,
    Cancel,
    Discard,
    End,
    Event,
    Expect,
    Grant,
    Read,
    Refuse,
    Release,
    Resize,
    Slot,
)
from ...tiering.planner.counters import Counters
from ...tiering.planner.planner import Planner
from ...tiering.policy.prefetch.convoy import PATIENCE
from ...tiering.policy.prefetch.speculation import Speculation
from ...tiering.units import BlockId
from ..tracing.notes import FORWARD
from ..tracing.recorder import Recorder
from .leases import Inbox, Leases

if TYPE_CHECKING:
    from ..tracing.run_recording import RunRecording

Found = TypeVar("Found")
Answer = Callable[[Grant | Refuse], None]
"""Called with each answer to a request, under the lock of the bridge that gives it."""


Watch = Callable[["Bridge"], Coroutine[None, None, None]]
"""Runs beside the reads of a bridge, which it may resize."""


class Bridge:
    """Compute threads call ``acquire`` and ``release``. For resident blocks this is one lock and some dictionary work,
    with no thread hop. The thread that causes a read hands it to the reader. The thread that sees its bytes arrive
    accounts for its end, and takes the lock for it: a thread that has the lock must not wait for reads to land."""

    def __init__(
        self,
        planner: Planner,
        flash: BlockSource[Place],
        memory: TierMemory[Place],
        *,
        watch: "Watch | None" = None,
        recording: "RunRecording | None" = None,
    ) -> None:
        """``watch`` runs on the background loop until the end, and may resize the bridge. ``recording`` is told of
        every event."""
        self._planner, self._memory, self._recording = planner, memory, recording
        self._lock = threading.RLock()
        self._moved = threading.Condition(self._lock)  # a stream has made progress
        self._busy = False
        self._late: deque[Event] = deque()
        self._open: dict[int, tuple[int, Answer]] = {}  # by ticket: the stream, and the function that is told
        self._numbers = itertools.count()
        self._closed: str | None = None
        self._error: type[Closed] = Closed
        self._stall_seconds = 0.0
        self.recorder: Recorder | None = None  # takes notes, while a trace is recorded
        beside = None if watch is None else functools.partial(watch, self)
        with no_waiting, self._lock:  # nothing is posted before the driver is there to read
            self._driver = Driver(flash, memory, self._landed, beside=beside)
        leave_at_fork(self)
        ENDING.halt_at_end(self)

    def halt(self) -> None:
        """As Halting.halt."""
        with no_waiting, self._lock:
            self._closed = self._closed or "the interpreter ends"

    def leave_to_parent(self) -> None:
        """As Inherited.leave_to_parent."""
        self._lock = threading.RLock()
        self._moved = threading.Condition(self._lock)
        self._late.clear()
        self._open.clear()
        self._busy, self._closed, self._error = False, FORKED, Forked

    def acquire(self, blocks: Sequence[BlockId], stream: int | None = None) -> Leases:
        """Lease ``blocks`` for the calling thread, or for ``stream``. They are taken from the result as they arrive.

        The caller gives each block back with ``release``, and closes the result if it does not take all. Raises Closed.
        """
        stream = threading.get_ident() if stream is None else stream
        if self._planner.crowded:
            self._let_catch_up(stream, blocks)
        try:
            return self._request(blocks, stream)
        except Closed:
            ENDING.rest()
            raise

    def _request(self, blocks: Sequence[BlockId], stream: int) -> Leases:
        leases = Leases(self, next(self._numbers), stream, len(blocks))
        self._open[leases.ticket] = (leases.stream, leases.inbox.put)
        try:
            self._post(Acquire(leases.ticket, leases.stream, tuple(blocks)))
        except BaseException:
            leases.close()
            raise
        return leases

    def release(self, *blocks: BlockId) -> None:
        """Give back one lease of the calling thread on each of ``blocks``."""
        if self._closed is None and not self._at_once(self._planner.give_back, blocks):
            self._post(Release(threading.get_ident(), blocks))

    def lease_resident(self, blocks: Sequence[BlockId]) -> list[Slot] | None:
        """As ``acquire``, where all of ``blocks`` are in memory and no other thread is in a forward: their slots. None
        elsewhere. Most tokens of a model that is in memory end here."""
        return self._at_once(self._planner.lease_resident, blocks)

    def _at_once(self, change: Callable[..., Found | None], blocks: Sequence[BlockId], *more: object) -> Found | None:
        """What ``change`` of the planner gives for the calling thread and ``blocks``. None where that needs an event:
        it is recorded, others wait for it, signals may come in between, or the planner is in the middle of one."""
        me = threading.get_ident()
        with no_waiting, self._lock:
            if self._busy or self._closed is not None or self._recording is not None or self._planner.crowded:
                return None
            if not SHIELD.on and me == SHIELD.main:  # outside of a forward
                return None
            return self._account(change, me, blocks, *more)

    def expect(
        self,
        certain: Sequence[BlockId],
        guessed: Sequence[BlockId],
        seconds: float = 0.0,
        residuals: Sequence[BlockId] = (),
    ) -> None:
        """Announce the blocks that the calling thread will acquire next, and the residuals that it could use; see
        Expect."""
        self._expect(Expect(threading.get_ident(), tuple(certain), tuple(guessed), seconds, tuple(residuals)))

    def _expect(self, event: Expect) -> None:
        self._post(event)

    def ticket(self) -> int:
        """A number for a request of the device tier."""
        return next(self._numbers)

    def relay(self, events: Iterable[Event], answer: Answer | None = None) -> None:
        """Handle ``events`` of the device tier. ``answer`` is called, from any thread, with the answers to what they
        acquire. Raises Closed."""
        for event in events:
            if isinstance(event, Acquire) and answer is not None:
                self._open[event.ticket] = (event.stream, self._counted(event, answer))
            try:
                self._post(event)
            except BaseException:
                if isinstance(event, Acquire):
                    self._open.pop(event.ticket, None)
                raise

    def _counted(self, event: Acquire, answer: Answer) -> Answer:
        """``answer``, which also forgets the ticket of ``event`` after the last answer."""
        left = len(event.blocks)

        def counted(given: Grant | Refuse) -> None:
            nonlocal left
            left -= 1
            if not left or isinstance(given, Refuse):
                self._open.pop(event.ticket, None)
            answer(given)

        return counted

    @property
    def speculation(self) -> Speculation:
        """Whether guesses pay, and what they cost. Only to be read."""
        return self._planner.speculation

    @property
    def eviction(self) -> str:
        """The name of the policy that evicts experts now."""
        return self._planner.eviction

    def is_missing(self, block: BlockId) -> bool:
        """Whether ``block`` is neither in memory nor on its way, at some moment during the call."""
        return self._planner.residency.absent(block)

    @waits
    @may_be_interrupted
    def wait(self, inbox: Inbox) -> Grant | Refuse:
        """The next answer in ``inbox``. The time until it comes counts as a stall."""
        start = time.monotonic()
        answer = inbox.get()
        ENDING.rest()
        self._stalled(start, answer.block if isinstance(answer, Grant) else None)
        return answer

    @may_be_interrupted
    def _let_catch_up(self, stream: int, blocks: Sequence[BlockId]) -> None:
        """Let other streams catch up before ``stream`` acquires ``blocks``: one read then serves them all."""
        start = time.monotonic()
        with no_waiting, self._lock:
            if not self._planner.hurries(stream, blocks):
                return
            while self._moved.wait(PATIENCE) and self._closed is None and self._planner.hurries(stream, blocks):
                pass
        self._stalled(start, blocks[0])

    def _stalled(self, start: float, block: BlockId | None) -> None:
        """A thread waited from ``start`` until now, for ``block`` if that is known."""
        end = time.monotonic()
        with no_waiting, self._lock:
            self._stall_seconds += end - start
        if (recorder := self.recorder) is not None:
            recorder.stall(start, end, block)

    def forget(self, ticket: int, inbox: Inbox, *, withdraw: bool) -> None:
        """Nothing more is taken for ``ticket``. ``withdraw``: cancel what it still waits for, and give back what was
        not taken."""
        if withdraw:
            with no_waiting, self._lock:  # the stream must not end in the middle
                self._withdrawn(ticket, inbox)
        self._open.pop(ticket, None)

    def _withdrawn(self, ticket: int, inbox: Inbox) -> None:
        stream, _ = self._open.get(ticket, (None, None))
        if stream is None:
            return
        self._post(Cancel(ticket))
        untaken: list[BlockId] = []
        while not inbox.empty():
            answer = inbox.get_nowait()
            if isinstance(answer, Grant):
                untaken += answer.leased
        if untaken:
            self._post(Release(stream, tuple(untaken)))

    def acquire_resident(self, blocks: Sequence[BlockId], *, region: str | None = None) -> dict[BlockId, Slot] | None:
        """Lease ``blocks`` for the calling thread if all of them are in memory now, and in ``region`` if that is given.
        Returns their slots, or None. Reads nothing and waits for nothing, because blocks could leave meanwhile."""
        slots = self._at_once(self._planner.lease_resident, blocks, region)
        if slots is not None:
            return dict(zip(blocks, slots, strict=True))
        with no_waiting, self._lock:
            for block in blocks:
                slot = self._planner.residency.slot(block)
                if slot is None or region not in (None, slot.region):
                    return None
            return dict(self._request(blocks, threading.get_ident()))

    def acquire_present(self, blocks: Sequence[BlockId]) -> dict[BlockId, Slot]:
        """Lease those of ``blocks`` that are in memory now for the calling thread. Reads nothing, waits for nothing."""
        with no_waiting, self._lock:
            here = [block for block in blocks if self._planner.residency.slot(block) is not None]
            return dict(self._request(here, threading.get_ident())) if here else {}

    def resize(self, limits: Mapping[str, int]) -> None:
        """Let each named region use ``limits`` bytes. Blocks beyond that leave as soon as no thread computes on
        them."""
        self._post(Resize(limits))

    def begin(self) -> None:
        """The calling thread enters the model's forward."""
        self._post(Begin(threading.get_ident()))
        if (recorder := self.recorder) is not None:
            recorder.forward()

    def end(self) -> None:
        """The calling thread leaves the model's forward, also by an error. Its leases are given back."""
        me = threading.get_ident()
        with no_waiting, self._lock:
            for ticket, (stream, _) in tuple(self._open.items()):
                if stream == me:  # leases that live on in a traceback have nothing to give back any more
                    self._open.pop(ticket, None)
            if self._closed is None:
                self._post(End(me))
        if (recorder := self.recorder) is not None:
            recorder.leave(FORWARD)

    def check_open(self) -> None:
        """Raise Closed if it is."""
        if self._closed is not None:
            raise Closed(self._closed)

    def counters(self) -> Counters:
        """A copy of the planner's totals."""
        with no_waiting, self._lock:
            counters = self._planner.counters
            return replace(counters, drive_bytes=list(counters.drive_bytes))

    def resident_bytes(self) -> int:
        """Bytes of blocks that are in memory or on their way."""
        return self.look(lambda planner: planner.residency.used_bytes)

    def look(self, at: Callable[[Planner], Found]) -> Found:
        """What ``at`` says of the planner, whose events wait meanwhile."""
        with no_waiting, self._lock:
            return at(self._planner)

    @property
    def stall_seconds(self) -> float:
        """Seconds that compute threads have waited for blocks, summed over threads."""
        return self._stall_seconds

    def check_integrity(self) -> None:
        """Raise AssertionError unless the planner's accounts add up; see Planner.check_integrity."""
        with no_waiting, self._lock:
            self._planner.check_integrity()

    def close(self) -> None:
        """Refuse all requests that wait, and let the reads in flight land where ``may_wait``. Idempotent."""
        with no_waiting, self._lock:
            self._stop("this model was closed; load it again to use it")
        self._driver.close()

    def _landed(self, event: Event) -> None:
        """A read has ended. Called on a reader's thread."""
        self._note_end(event)
        self._post(event)

    def _note_start(self, read: Read) -> None:
        if (recorder := self.recorder) is not None:
            recorder.started(read)

    def _note_end(self, event: Event) -> None:
        if (recorder := self.recorder) is not None:
            recorder.landed(event)

    def _stop(self, reason: str) -> None:
        self._closed = self._closed or reason
        self._moved.notify_all()
        for ticket, (_, answer) in tuple(self._open.items()):
            answer(Refuse(ticket, self._error(self._closed)))

    def _post(self, event: Event) -> None:
        if not SHIELD.on and threading.get_ident() == SHIELD.main:  # outside of a forward
            with SHIELD:
                return self._post(event)
        with no_waiting, self._lock:
            if self._closed is not None:
                if isinstance(event, Acquire | Begin):
                    raise self._error(self._closed)
            elif self._busy:  # the garbage collector closed leases while this thread was in here
                self._late.append(event)
            else:
                self._account(self._handle, event)
        return None

    def _account(self, change: Callable[..., Found], *given: object) -> Found:
        """What ``change`` of the accounts gives; then the events that came meanwhile are handled."""
        self._busy = True
        try:
            found = change(*given)
            while self._late:
                self._handle(self._late.popleft())
            return found
        except BaseException as error:  # an error half-way leaves the accounts unknown: go no further
            self._stop(f"this model was interrupted in the middle of its accounts by {error!r}; load it again")
            raise
        finally:
            self._busy = False

    def _handle(self, event: Event) -> None:
        now = time.monotonic()
        actions = self._planner.handle(event, now)
        if self._recording is not None:
            self._recording.step(now, event, actions)
        self._perform(actions)
        if isinstance(event, Acquire | Begin | End):
            self._moved.notify_all()

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Read):
                self._note_start(action)
                self._driver.submit(action)
            elif isinstance(action, Discard):
                self._memory.discard(action.offset, action.length)
            else:
                _, answer = self._open.get(action.ticket, (None, None))
                if answer is not None:
                    answer(action)
