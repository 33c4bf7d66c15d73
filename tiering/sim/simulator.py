"""Simulated runs (pure): streams, a planner and drives on one agenda. Equal arguments give equal runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from ..errors import DeviceModelError, ReadError
from ..events import Acquire, Begin, Discard, End, Event, Grant, Read, ReadDone, ReadFailed, Refuse, Resize
from ..kv.events import ReadPages
from ..planner.counters import Counters
from ..planner.planner import Planner
from ..policy.prefetch.convoy import PATIENCE
from .agenda import Agenda, Shared
from .devices import Drive, Memory
from .drive import AnyRead, Reads
from .host_tier import Below, Lower
from .kv_pool import SimulatedPool
from .kv_streams import Attention
from .noise import Dice, Noise
from .outcome import Outcome, Passed, since
from .streams import Steps, Wait, Walker
from .workload import Pass, Workload

_QUIET = Noise()


def simulate(
    workload: Workload,
    planner: Planner,
    *,
    drives: Sequence[Drive],
    memory: Memory,
    below: Below | None = None,
    noise: Noise = _QUIET,
    seed: int = 0,
    untimed: int = 0,
    resizes: Iterable[tuple[float, Mapping[str, int]]] = (),
) -> Outcome:
    """Run ``workload`` on ``planner``, to which nothing has happened yet.

    What stays in memory is loaded first, without noise. Then the time begins; it counts from when every stream has made
    ``untimed`` passes. ``resizes``: at what second regions get other limits, in bytes. ``seed`` decides what ``noise``
    does. With ``below``, ``planner`` is that of a device tier, and the drives are read by the one below it.

    Raises DeviceModelError where a drive is meant that is not described; AssertionError when the planner leaves a
    stream waiting for ever.
    """
    reading = planner if below is None else below.planner
    meant = {home.drive for home in reading.homes.values()} | {spell.drive for spell in noise.spells}
    if missing := meant - set(range(len(drives))):
        raise DeviceModelError(
            f"blocks or spells are on drive number {max(missing)}, and {len(drives)} are described; describe every one"
        )
    run = _Run(workload, planner, drives, memory, below)
    run.load()
    run.trouble(noise, seed)
    for second, limits in resizes:
        run.agenda.after(second, run.resize, Resize(limits))
    return run.timed(untimed)


class _Lane:
    """A stream under way: what it waits for, and what it has done."""

    def __init__(self, walker: Walker) -> None:
        self.walker = walker
        self.waits: Wait | None = None
        self.since = 0.0  # when it began to wait
        self.waited = self.computed = self.made = 0  # how often it has waited, computed, and made a pass


class _Mark(NamedTuple):
    """The accounts at some moment."""

    now: float
    counters: Counters
    passes: int
    events: int
    stalled: float
    computed: float
    drives: tuple[float, ...]
    above: Counters | None
    copied: int
    bus: float
    kv_read: int


class _Run:
    def __init__(
        self, workload: Workload, planner: Planner, drives: Sequence[Drive], memory: Memory, below: Below | None
    ) -> None:
        self.agenda = Agenda()
        self._lower = None if below is None else Lower(below, self.agenda, self._submit, self.post)
        self._workload, self._planner = workload, planner
        self._cores = Shared(self.agenda, self._speed)
        self._slowed = 1 - memory.contention  # what is left of their speed while a drive delivers
        self._delivering = 0  # drives
        self._dice = Dice(0, _QUIET)
        self._drives = [
            Reads(n, drive, self.agenda, self._dice, self._came, self._busy) for n, drive in enumerate(drives)
        ]
        self._steps: dict[_Lane, Steps] = {}  # of those that are not done
        self._pool = self._open_pool(workload)
        tickets = count(1)
        walkers = [
            Walker(n, planner, self.post, tickets, memory, self._attention(workload, memory))
            for n, _ in enumerate(workload.streams, 1)
        ]
        self._lanes = [_Lane(walker) for walker in walkers]
        self._passes: list[Passed] = []
        self._events, self._stalled = 0, 0.0
        self._untimed = 0
        self._mark: _Mark | None = None

    def _open_pool(self, workload: Workload) -> SimulatedPool | None:
        context = workload.context
        if context is None or context.setup is None:
            return None
        drive = self._drives[0]  # of the store
        return SimulatedPool(context.setup, drive.submit, drive.write, self._answer_pages)

    def _attention(self, workload: Workload, memory: Memory) -> Attention | None:
        """A context of one more stream. Raises BudgetTooSmall, FlashFull."""
        if self._pool is None or workload.context is None:
            return None
        return Attention(workload.context, self._pool, memory.seconds)

    # --- the run ----------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Have read what stays in memory."""
        if self._pool is not None:
            self._pool.building = False
        for lane in self._lanes[:1]:
            self._go({lane: lane.walker.load()})
        if self._lower is not None:
            self._lower.load()
            while self.agenda.step():
                pass

    def trouble(self, noise: Noise, seed: int) -> None:
        """From now on ``noise`` happens."""
        self._dice = Dice(seed, noise, start=self.agenda.now)
        for drive in self._drives:
            drive.dice = self._dice
        for spell in noise.spells:
            for second in (spell.start, spell.start + spell.seconds):
                self.agenda.after(second, self._drives[spell.drive].speed_changed)

    def timed(self, untimed: int) -> Outcome:
        """Make all passes; what comes after the first ``untimed`` of every stream."""
        self._untimed = untimed
        self._mark = None if untimed else self._accounts()
        streams = zip(self._lanes, self._workload.streams, strict=True)
        self._go({lane: self._walk(lane, passes) for lane, passes in streams})
        end = self._accounts()
        begin = self._mark or end
        passes = tuple(self._passes[begin.passes :])
        return Outcome(
            untimed=tuple(self._passes[: begin.passes]),
            passes=passes,
            seconds=end.now - begin.now,
            tokens=sum(each.tokens for each in passes if not each.failed),
            counters=since(begin.counters, end.counters),
            above=since(begin.above, end.above) if begin.above and end.above else None,
            bytes_copied=end.copied - begin.copied,
            kv_bytes_read=end.kv_read - begin.kv_read,
            bus_busy_seconds=end.bus - begin.bus,
            stall_seconds=end.stalled - begin.stalled,
            compute_seconds=end.computed - begin.computed,
            drive_busy_seconds=tuple(b - a for a, b in zip(begin.drives, end.drives, strict=True)),
            events=end.events - begin.events,
        )

    def _go(self, steps: dict[_Lane, Steps]) -> None:
        self._steps = steps
        for lane in steps:
            self.agenda.after(0.0, self._resume, lane)
        while self._steps:
            if not self.agenda.step():
                waiting = ", ".join(str(lane.walker.number) for lane in self._steps)
                raise AssertionError(f"streams {waiting} wait for ever")

    def _walk(self, lane: _Lane, passes: Iterable[Pass]) -> Steps:
        for each in passes:
            begin = self.agenda.now
            failed = yield from lane.walker.make(self._workload, each)
            self._passes.append(Passed(lane.walker.number, each.tokens, begin, self.agenda.now, failed))
            lane.made += 1
            if self._mark is None and all(other.made >= self._untimed for other in self._lanes):
                self._mark = self._accounts()

    def _accounts(self) -> _Mark:
        top, lower = self._planner.counters, self._lower
        return _Mark(
            now=self.agenda.now,
            counters=_copy(top if lower is None else lower.planner.counters),
            above=None if lower is None else _copy(top),
            copied=0 if lower is None else lower.bytes_copied,
            bus=0.0 if lower is None else lower.busy_seconds,
            passes=len(self._passes),
            events=self._events,
            stalled=self._stalled,
            computed=self._cores.busy_seconds,
            drives=tuple(drive.busy_seconds for drive in self._drives),
            kv_read=0 if self._pool is None else self._pool.bytes_read,
        )

    # --- events -----------------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Hand ``event`` to the planner, and do what it says."""
        self._events += 1
        if self._lower is not None:
            event = self._lower.told(event, self._planner)
        for action in self._planner.handle(event, self.agenda.now):
            if isinstance(action, Read):
                (self._submit if self._lower is None else self._lower.read)(action)
            elif not isinstance(action, Discard):
                self._answer(action.ticket, action)
        if isinstance(event, Acquire | Begin | End):
            for lane in self._steps:
                if lane.waits is Wait.OTHERS:
                    self._wake(lane, True)

    def resize(self, event: Resize) -> None:
        """The regions of the tier that reads from the drives get other limits."""
        (self.post if self._lower is None else self._lower.post)(event)

    def _submit(self, read: Read) -> None:
        reading = self._planner if self._lower is None else self._lower.planner
        self._drives[reading.homes[read.parts[0].block].drive].submit(read)

    def _speed(self, jobs: int) -> float:
        """Of the cores together: each job, alone, would have them all."""
        return self._slowed if self._delivering else 1.0

    def _busy(self, busy: bool) -> None:
        """A drive has begun to deliver, or has delivered all."""
        before = self._delivering
        self._delivering += 1 if busy else -1
        if self._slowed < 1 and bool(before) != bool(self._delivering):
            self._cores.changed()

    def _came(self, read: AnyRead, seconds: float, failed: bool) -> None:
        """The bytes of ``read`` are here; a core is busy with them for ``seconds``."""
        if seconds:
            self._cores.add(seconds, self._landed, read, failed)
        else:
            self._landed(read, failed)

    def _landed(self, read: AnyRead, failed: bool) -> None:
        if isinstance(read, ReadPages):
            assert self._pool is not None
            self._pool.landed(read, failed=failed)
            return
        event = ReadFailed(read.read, ReadError("simulated")) if failed else ReadDone(read.read)
        (self.post if self._lower is None else self._lower.post)(event)

    def _answer(self, ticket: int, answer: Grant | Refuse) -> None:
        for lane in self._steps:
            if lane.walker.ticket == ticket:
                lane.walker.inbox.append(answer)
                if lane.waits is Wait.ANSWER:
                    self._wake(lane, True)

    def _answer_pages(self, ticket: int) -> None:
        """A request for pages of KV is answered."""
        for lane in self._steps:
            attention = lane.walker.attention
            if lane.waits is Wait.PAGES and attention is not None and attention.ticket == ticket:
                self._wake(lane, True)

    # --- streams ----------------------------------------------------------------------------------------------------

    def _resume(self, lane: _Lane, sent: bool | None = None) -> None:
        """Have ``lane`` go on until it computes or waits."""
        steps = self._steps[lane]
        try:
            wish = next(steps) if sent is None else steps.send(sent)
        except StopIteration:
            del self._steps[lane]
            return
        if isinstance(wish, Wait):
            lane.waits, lane.since = wish, self.agenda.now
            lane.waited += 1
            if wish is Wait.OTHERS:
                self.agenda.after(PATIENCE, self._run_out, lane, lane.waited)
        else:
            lane.computed += 1
            self._cores.add(self._dice.varied(wish, lane.walker.number, lane.computed), self._computed, lane)
            self._tell_drives()

    def _computed(self, lane: _Lane) -> None:
        self._resume(lane, True)
        self._tell_drives()

    def _tell_drives(self) -> None:
        for drive in self._drives:
            drive.beside(bool(self._cores))

    def _wake(self, lane: _Lane, moved: bool) -> None:
        """``lane`` has waited enough."""
        lane.waits = None
        self._stalled += self.agenda.now - lane.since
        self.agenda.after(0.0, self._resume, lane, moved)

    def _run_out(self, lane: _Lane, waited: int) -> None:
        if lane.waits is Wait.OTHERS and lane.waited == waited:
            self._wake(lane, False)


def _copy(counters: Counters) -> Counters:
    return replace(counters, drive_bytes=list(counters.drive_bytes))
