"""The memory and the flash that all KV pages of a loaded model share: asks the planner, does what it decides."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import torch

from ....kernels.devices.base import Device
from ....kernels.memory.arena import Arena
from ....kernels.process.ending import ENDING
from ....kernels.process.forks import FORKED, leave_at_fork
from ....kernels.process.interrupts import SHIELD, may_be_interrupted
from ....kernels.waiting import no_waiting
from ....tiering.errors import Closed, Forked
from ....tiering.events import Cancel, Discard, Refuse
from ....tiering.kv.device_pages import DevicePages, Pair
from ....tiering.kv.events import (
    AddRef,
    Close,
    Drop,
    FetchPages,
    HoldPages,
    KVAction,
    KVEvent,
    LetGo,
    Lift,
    Look,
    Open,
    PagesRead,
    PagesWritten,
    ReadAhead,
    ReadPages,
    Request,
    Reserve,
    Score,
    Seal,
    SetLimit,
    Show,
    Unreserve,
    Wake,
)
from ....tiering.kv.pages import BlockTable, Page
from ....tiering.kv.planner import CLOSED
from ....tiering.kv.setup import KVSetup
from ....tiering.policy.placement.memory_split import MemoryShare
from ...tracing.recorder import Recorder
from .counters import PoolCounters, PoolUsage
from .reads import PageReads
from .spill import Spill
from .writeback import WriteBack

if TYPE_CHECKING:
    from ...tracing.run_recording import RunRecording

_ANSWERS = (Wake, Show, Refuse)
_ENDS = (PagesRead, PagesWritten)


class PagePool:
    """Pages in ``capacity`` bytes of memory, and in ``spill`` up to ``flash_limit`` bytes. Thread-safe.

    Who computes on pages holds them: ``hold`` for those in memory, ``fetch`` for those that are read. ``release`` ends
    either; a page that was fetched leaves memory with its last use, unless there is room to stay.

    What becomes of pages is decided by the ``planner``, which every call asks, under one lock. Only ``new``,
    ``reserve`` and ``fetch`` wait. Once it is closed, they and ``hold`` and ``read_ahead`` raise Closed.
    """

    def __init__(self, capacity: int, spill: Spill, flash_limit: int | None, *, floor: int | None = None) -> None:
        """``floor`` bytes of the memory stay when the machine runs short; None: all."""
        self._setup = KVSetup(capacity, flash_limit)
        self.planner = self._setup.planner()
        """Only to be read."""
        self.memory, self.places = self.planner.books.memory, self.planner.books.places
        self.part = MemoryShare(self.memory.capacity if floor is None else min(floor, capacity), self.memory.capacity)
        """Between which sizes ``resize`` may be called."""
        self.counters = PoolCounters()
        self._arena = Arena(max(1, self.memory.capacity))
        # Keeps the memory while somebody computes on addresses in it, past ``close``.
        self._memory: torch.Tensor | None = self._arena.tensor(0, torch.uint8, (self.memory.capacity,))
        # Entered by whoever the garbage collector interrupts: what it does here never waits.
        self._changed = threading.Condition(threading.RLock())
        self._late: deque[KVEvent] = deque()
        self._busy = False
        self._owners: dict[weakref.ref[object], Callable[[], None]] = {}
        self._gone: deque[weakref.ref[object]] = deque()  # owners that the garbage collector has taken
        self._answers: dict[int, Wake | Show | Refuse] = {}
        self._sleepers = 0  # threads that wait for an answer
        self._forked = False  # the pages are the parent's, of which this process is a child
        self._tickets = count()
        self._lift: Callable[[Pair], None] | None = None
        self._recording: RunRecording | None = None
        self._spill = spill
        self._reads = PageReads(spill, self._bytes, self._changed, self.counters, self.post)
        self._writes = WriteBack(spill, self._bytes, self._changed, self.counters, self.post)
        leave_at_fork(self)

    def leave_to_parent(self) -> None:
        """As Inherited.leave_to_parent."""
        self._changed = threading.Condition(threading.RLock())
        self._forked = True

    # --- pages come and go ------------------------------------------------------------------------------------------

    def new(self, track: BlockTable, index: int, size: int, format: object, *, score: float = 0.0) -> Page:
        """An open page of ``size`` zero bytes, to be number ``index`` of ``track``; ``score`` is its attention score.
        Raises BudgetTooSmall, FlashFull, ReadError."""
        page = Page(size, format, track.number, index, attention_score=score)
        self._ask(Open(next(self._tickets), page))
        self.view(page).zero_()  # behind the last token there shall be numbers, not NaN
        return page

    def seal(self, *pages: Page) -> None:
        """``pages`` are full: they will not change, and may leave memory."""
        self.post(Seal(pages))

    def drop(self, pages: Sequence[Page]) -> None:
        """One track less has each of ``pages``; those that none has are gone."""
        self.post(Drop(_real(pages)))

    def abandon(self, pages: Sequence[Page]) -> None:
        """As ``drop``, soon; may be called by the garbage collector, from the middle of anything."""
        self._late.append(Drop(_real(pages)))

    def own(self, owner: object, abandon: Callable[[], None]) -> None:
        """Have ``abandon`` called soon after ``owner`` has gone: the garbage collector runs no code that a signal could
        interrupt."""
        self._owners[weakref.ref(owner, self._gone.append)] = abandon

    def share(self, pages: Sequence[Page]) -> None:
        """One track more has each of ``pages``."""
        self.post(AddRef(_real(pages)))

    def score(self, pages: Sequence[Page], scores: Sequence[float], *, anew: bool = False) -> None:
        """Add ``scores`` to the attention scores of ``pages``; ``anew``: in place of what they had."""
        self.post(Score(pages, scores, anew))

    def reserve(self, size: int) -> None:
        """Take ``size`` bytes of the memory for something else; a negative number gives them back. Raises
        BudgetTooSmall."""
        if size > 0:
            self._ask(Reserve(next(self._tickets), size))
        else:
            self.post(Unreserve(-size))

    def abandon_reserve(self, size: int) -> None:
        """As ``reserve(-size)``, soon; may be called by the garbage collector."""
        self._late.append(Unreserve(size))

    # --- using them -------------------------------------------------------------------------------------------------

    def view(self, page: Page) -> torch.Tensor:
        """The bytes of ``page``, in memory and held, or open: uint8 [size]."""
        assert page.slot is not None
        return self._arena.tensor(page.slot, torch.uint8, (page.size,))

    def address(self, page: Page) -> int:
        """Where the bytes of ``page`` are, in memory and held, or open."""
        assert page.slot is not None
        return self._arena.address + page.slot

    def hold(self, pages: Sequence[Page]) -> list[Page]:
        """Those of ``pages`` that are in memory, each of them held; not those being read."""
        return [*self._ask(HoldPages(next(self._tickets), pages))]

    def release(self, pages: Sequence[Page]) -> None:
        """Give back one use of each of ``pages``."""
        self.post(LetGo(pages))

    def read_ahead(self, pages: Sequence[Page]) -> int:
        """Start to read those of ``pages``, in their order, that are not in memory, as far as there is room in the ring
        now; how many of ``pages`` need no further asking."""
        return len(self._ask(ReadAhead(next(self._tickets), pages)))

    def fetch(self, pages: Sequence[Page]) -> list[Page]:
        """``pages``, read and held; of a run that can be read at once. Waits. Raises ReadError, BudgetTooSmall."""
        return [*self._ask(FetchPages(next(self._tickets), tuple(pages)))]

    @property
    def most(self) -> int:
        """Bytes that are read at once, at most."""
        return self.planner.most

    @property
    def given_up(self) -> int:
        """Pages that were read ahead, and left memory before anybody looked at them."""
        return self.planner.room.given_up

    # --- a device above ---------------------------------------------------------------------------------------------

    def add_device(self, capacity: int, device: Device, lift: Callable[[Pair], None]) -> None:
        """Copies of pages may lie in ``capacity`` bytes of ``device``; ``lift`` begins to make one, under the lock.
        Before any page is there. The system is asked to keep the memory in place for the device to fetch from."""
        device.lock_pages(self._arena)
        self._setup = replace(self._setup, device=capacity)
        self.planner.books.copies, self._lift = DevicePages(capacity), lift

    def look(self, keys: Sequence[Page]) -> Sequence[Pair]:
        """The copies of those pages of ``keys`` that are on the device; they stay until they were ``Looked`` at."""
        answer = self._answer(Look(next(self._tickets), keys))
        assert isinstance(answer, Show)
        return answer.pairs

    # --- the whole --------------------------------------------------------------------------------------------------

    @property
    def recorder(self) -> Recorder | None:
        """Who takes notes, if anybody does."""
        return self._reads.recorder

    @recorder.setter
    def recorder(self, recorder: Recorder | None) -> None:
        self._reads.recorder = recorder

    def record(self, recording: "RunRecording") -> None:
        """Have ``recording`` told of every event and what came of it. Before any page is there."""
        with no_waiting, self._changed:
            recording.begin_kv(self._setup)
            self._recording = recording

    def usage(self) -> PoolUsage:
        """What is in use now, and what has happened."""
        with no_waiting, self._changed:
            self._go_on()
            memory, copies = self.memory, self.planner.books.copies
            return PoolUsage(
                host_bytes=memory.used,
                host_budget=memory.capacity,
                host_limit=memory.limit,
                flash_bytes=self.places.used,
                device_bytes=copies.used,
                device_budget=copies.capacity,
                counters=replace(self.counters),
            )

    @property
    def flash_limit(self) -> int | None:
        """Bytes that may lie on flash; None: without bound."""
        return self._setup.flash_limit

    @property
    def limit(self) -> int:
        """Bytes of memory that may be used now."""
        return self.memory.limit

    @property
    def held(self) -> int:
        """Bytes of memory that the system may have given us."""
        return self.memory.held

    @property
    def wanted(self) -> int:
        """Bytes of memory with which all pages that there are would have room, in sixteenths of the capacity."""
        return self.planner.books.wanted

    def resize(self, limit: int) -> None:
        """Use ``limit`` bytes of memory from now on. What lies beyond leaves as soon as nobody needs it there."""
        self.post(SetLimit(limit))

    def check_integrity(self) -> None:
        """Raises AssertionError where the books do not balance."""
        with no_waiting, self._changed:
            self._go_on()
            self.planner.check_integrity()

    def close(self) -> None:
        """Stop; all pages are gone. Waits for reads and writes under way. Idempotent, also after an interrupt."""
        with self._changed:
            if self._forked:
                return
            if not self.planner.closed:
                self.post(Close())
            self._wait_until_idle()
        self._writes.close()
        self._spill.close()
        self._arena.close()
        with self._changed:
            if not self.planner.books.held:
                self._memory = None

    @may_be_interrupted
    def _wait_until_idle(self) -> None:
        while not self.planner.is_idle:
            self._changed.wait()  # every end of a read or write is told

    # --- the planner ------------------------------------------------------------------------------------------------

    def post(self, event: KVEvent) -> None:
        """Hand ``event`` to the planner, and do what it says."""
        if not SHIELD.on and threading.get_ident() == SHIELD.main:  # outside of a forward
            with SHIELD:
                self.post(event)
            return
        with no_waiting, self._changed:
            self._late.append(event)
            self._go_on()

    def _ask(self, request: Request) -> Sequence[Page]:
        answer = self._answer(request)
        assert isinstance(answer, Wake)
        return answer.pages

    def _answer(self, request: Request) -> Wake | Show:
        """What becomes of ``request``. Waits for it. Raises what it is refused with."""
        if not SHIELD.on and threading.get_ident() == SHIELD.main:
            with SHIELD:
                return self._answer(request)
        if self._forked:
            raise Forked(FORKED)
        ticket = request.ticket
        with no_waiting, self._changed:
            self._late.append(request)
            self._go_on()
            if ticket not in self._answers:
                self._wait(request)
            answer = self._answers.pop(ticket)
        if isinstance(answer, Refuse):
            raise answer.error
        return answer

    @may_be_interrupted
    def _wait(self, request: Request) -> None:
        start, ticket = time.monotonic(), request.ticket
        self._sleepers += 1
        try:
            while ticket not in self._answers:
                self._changed.wait()
                if ENDING.stops_here():  # without the lock, so not yet
                    raise Closed(CLOSED)
        except BaseException:  # an interrupt
            answer = self._answers.pop(ticket, None)
            if answer is None:
                self.post(Cancel(ticket))
            elif isinstance(answer, Wake):
                self._give_back(request)
            raise
        finally:
            self._sleepers -= 1
        end = time.monotonic()
        self.counters.stall_seconds += end - start
        if (recorder := self.recorder) is not None:
            recorder.kv_stall(start, end)

    def _give_back(self, request: Request) -> None:
        """Undo ``request``, which was granted to somebody who does not want it any more."""
        if isinstance(request, Open):
            self.post(Drop((request.page,)))
        elif isinstance(request, Reserve):
            self.post(Unreserve(request.size))
        elif isinstance(request, FetchPages):
            self.post(LetGo(request.pages))

    def _go_on(self) -> None:
        """Handle what has been posted, under the lock."""
        if self._busy or self._forked:  # the garbage collector, or a read that could not begin, came in the middle
            return
        self._busy = True
        try:
            while self._gone:
                self._owners.pop(self._gone.popleft())()
            while self._late:
                event = self._late.popleft()
                actions = self.planner.handle(event)
                if self._recording is not None:
                    self._recording.kv_step(time.monotonic(), event, actions)
                for action in actions:
                    self._perform(action)
                if self._sleepers or isinstance(event, _ENDS):
                    self._changed.notify_all()
                if self.planner.closed and not self.planner.books.held:
                    self._memory = None
        finally:
            self._busy = False

    def _perform(self, action: KVAction) -> None:
        if isinstance(action, _ANSWERS):
            self._answers[action.ticket] = action
        elif isinstance(action, ReadPages):
            self._reads.start(action)
        elif isinstance(action, Discard):
            self._arena.discard(action.offset, action.length)
        elif isinstance(action, Lift):
            assert self._lift is not None
            self._lift(action.pair)
        else:
            self._writes.start(action)

    def _bytes(self, page: Page) -> memoryview:
        assert page.slot is not None
        return self._arena.view(page.slot, page.size)


def _real(pages: Sequence[Page]) -> tuple[Page, ...]:
    """``pages`` without those that only stand for what was dropped."""
    return tuple(page for page in pages if not page.is_gone)
