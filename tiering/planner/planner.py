"""Decides what is read, granted and evicted (pure): ``handle(event, now)`` returns the actions to perform.

Theory of operation. Streams (compute threads) *acquire* blocks and *release* them. A block that is ready is granted at
once. An absent one joins the demand queue, in the order asked for; the queue is turned into reads as long as fewer than
``depth`` are in flight on the block's drive and room can be made by evicting what is neither leased nor loading. Only
when no demand is left that could be issued do prefetches go out: the dense blocks that come next in the cycle, which
never evict a block that is needed sooner than the one they bring; then the experts that a stream expects, certain ones
before guesses, which never evict one another; and last, to a drive that has nothing at all to read, residuals, which
make finer what can be computed without them, as many as ``Refinement`` allows. What could not be read is not prefetched
again: it waits for the next demand, a residual for some time.

A block whose drive is busy is passed over, so that a slow drive does not hold up the others. A demand that goes past it
may take the room that it would have had; a prefetch may not: it leaves the room for what is needed sooner, or blocks
would be read in vain.

Why nobody waits for ever: in an expert region a stream that waits holds only leases that were granted to it and that it
will take, use and give back before it waits again. In the streaming region a stream normally holds nothing while it
waits; where a model forces it to (weights used outside of their module's forward), the case in which all holders wait
is recognised: a demand that fits may overtake; if none does, one may pass a region's limit, since what has room in all
of the memory must not fail for want of it; and if that does not help, one is refused with an error that names it.

=============  ==========================================================================================
event          what it changes
=============  ==========================================================================================
Begin, End     position of the stream in the cycle; End also takes back leases and tickets left behind
Acquire        grants for ready blocks and their residuals, tickets on loading blocks, demand for absent ones
Release        one lease less; room for the demand queue and for prefetch
Expect         which experts a stream will ask for, which residuals are of use to it: read when nothing else is to do,
               and kept for it meanwhile
Cancel         the ticket's wishes are forgotten
ReadDone       loading -> ready; grants for all who wait
ReadFailed     loading -> absent; refusals for all who wait
Resize         limits of the regions; what lies beyond goes as soon as nobody holds it, its memory is given back
=============  ==========================================================================================
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from ..errors import UnplaceableModule
from ..events import (
    COPY_STREAM,
    Acquire,
    Action,
    Begin,
    Cancel,
    Discard,
    End,
    Event,
    Expect,
    Grant,
    Part,
    Purpose,
    Read,
    ReadDone,
    ReadFailed,
    Refuse,
    Release,
    Resize,
    Slot,
    Stream,
)
from ..policy.eviction import EVICTION, Eviction, Policy
from ..policy.prefetch.convoy import Convoys
from ..policy.prefetch.cycle import Cycle
from ..policy.prefetch.module_order import Route
from ..policy.prefetch.refinement import Refinement
from ..policy.prefetch.speculation import Speculation
from ..units import BlockId, format_size
from .coalesce import joins
from .counters import Counters
from .deadlock import stuck
from .expectations import Expectations
from .inflight import InFlight
from .regions import EXPERTS, RESIDUALS, STREAM, Home, Limits
from .residency import Residency


@dataclass(slots=True)
class _Ticket:
    stream: Stream
    wants: set[BlockId] = field(default_factory=set)


class Planner:
    """One memory tier over flash."""

    def __init__(
        self,
        residency: Residency,
        homes: Mapping[BlockId, Home],
        *,
        cycle: Cycle,
        experts: Policy,
        depth: int,
        read_limit: int,
        drives: int = 1,
        speculation: Speculation | None = None,
    ) -> None:
        """``depth`` reads in flight at most on each of ``drives``; neighbours join into reads of at most ``read_limit``
        bytes."""
        self.residency, self.counters = residency, Counters(drive_bytes=[0] * drives)
        self.speculation = speculation or Speculation()
        self._expectations = Expectations(self.counters, self.speculation)
        self._limits, self._cycle = Limits(residency, homes, cycle), cycle
        self._homes = self._limits.homes
        self._route = Route(block.module for block in homes)
        self._refinement = Refinement({block: home.extent.length for block, home in homes.items()})
        self._eviction: dict[str, Eviction] = {
            STREAM: cycle,
            EXPERTS: experts(self._route),
            RESIDUALS: EVICTION["lfu"](self._route),  # the hottest stay
        }
        self._convoys = Convoys(self._route, (STREAM, EXPERTS))
        self._measure()
        self._in_flight, self._read_limit = InFlight(drives, depth), read_limit
        self._tickets: dict[int, _Ticket] = {}
        self._waiting: dict[BlockId, list[int]] = {}
        self._queue: dict[BlockId, None] = {}  # absent blocks in demand, in order
        self._gone = 0  # distance of the nearest block that this pass of prefetching evicted: none further is brought
        self._failed: set[BlockId] = set()  # read in vain, and not in demand since

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take ``event`` in, at monotonic time ``now`` in seconds; the actions to perform, in order."""
        actions: list[Action] = []
        match event:
            case Acquire():
                self._acquire(event, actions)
                if event.ticket not in self._tickets:
                    return actions  # all here: nothing that could be read has changed
            case Release():
                for block in event.blocks:
                    self.residency.release(block, event.stream)
                wanted = self._queue or self._expectations or self._limits.leaving
                if not wanted and not any(self._homes[block].region == STREAM for block in event.blocks):
                    return actions  # room that nobody wants
            case Expect():
                self._eviction[RESIDUALS].used(event.finer)
                self._expectations.expect(event)
            case ReadDone():
                self._read_done(event, actions, now)
            case ReadFailed():
                self._read_failed(event, actions, now)
            case Begin():
                self._cycle.begin(event.stream)
                self._route.begin(event.stream)
                for policy in self._eviction.values():
                    policy.tick()
                self.speculation.tick()
                self._refinement.tick()
            case End():
                self._end(event.stream)
            case Cancel():
                self._forget(event.ticket)
            case Resize():
                actions += self._limits.resize(event.limits)
                self._measure()
        if self._limits.leaving:
            self._clear_out(actions)
        self._schedule(actions, now)
        return actions

    @property
    def homes(self) -> Mapping[BlockId, Home]:
        """Where each block comes from and goes to, now."""
        return self._homes

    @property
    def eviction(self) -> str:
        """The name of the policy by which experts are evicted now."""
        return self._eviction[EXPERTS].name

    @property
    def crowded(self) -> bool:
        """Whether several streams run."""
        return len(self._route.streams) > 1

    def hurries(self, stream: Stream, blocks: Iterable[BlockId]) -> bool:
        """Whether ``stream`` is so far ahead of others that it had better wait before it acquires ``blocks``."""
        limits = {name: region.limit for name, region in self.residency.regions.items()}
        holding = {self._homes[block].region for block in self.residency.held(stream)}
        return self._convoys.hurries(stream, next(iter(blocks)).module, limits, holding)

    def _measure(self) -> None:
        """Tell the convoys where blocks go now, and what residuals have room for."""
        self._convoys.measure((home.region, block.module, home.extent.length) for block, home in self._homes.items())
        limits = {name: region.limit for name, region in self.residency.regions.items()}
        self._refinement.measure(limits.get(EXPERTS, 0), limits.get(RESIDUALS, 0))

    # --- events -----------------------------------------------------------------------------------------------------

    def _acquire(self, event: Acquire, actions: list[Action]) -> None:
        assert len(set(event.blocks)) == len(event.blocks)
        ticket = _Ticket(event.stream)
        self._expectations.asked(event.stream, event.blocks)
        if event.blocks:
            self._route.reach(event.stream, event.blocks[0].module)
        for region in (STREAM, EXPERTS):  # residuals are used when they are expected, here or not
            policy = self._eviction[region]
            if used := [block for block in event.blocks if self._homes[block].region == region]:
                policy.used(used)
        for block in event.blocks:
            region = self._homes[block].region
            slot = self.residency.slot(block)
            if region != EXPERTS:
                self._cycle.advance(event.stream, block)
            if region in (STREAM, EXPERTS):
                self._count(block, slot is not None)
            if slot is not None:
                self._grant(event.ticket, event.stream, block, slot, actions)
                continue
            ticket.wants.add(block)
            self._waiting.setdefault(block, []).append(event.ticket)
            if self.residency.absent(block):
                self._queue.setdefault(block)
        if ticket.wants:
            self._tickets[event.ticket] = ticket
            self._expectations.crowd()

    def _read_done(self, event: ReadDone, actions: list[Action], now: float) -> None:
        parts = self._landed(event.read, now).parts
        self._limits.arrived(part.block for part in parts)
        for part in parts:
            slot = self.residency.arrive(part.block)
            self._failed.discard(part.block)
            if slot.region in self._eviction:
                self._eviction[slot.region].inserted(part.block)
            for number in self._waiting.pop(part.block, ()):
                ticket = self._tickets[number]
                ticket.wants.remove(part.block)
                if not ticket.wants:
                    del self._tickets[number]
                self._grant(number, ticket.stream, part.block, slot, actions)

    def _read_failed(self, event: ReadFailed, actions: list[Action], now: float) -> None:
        for part in self._landed(event.read, now).parts:
            self.residency.abandon(part.block)
            if self._homes[part.block].region == RESIDUALS:
                self._refinement.failed(part.block)
                self.counters.refine_failures += 1
            else:
                self._failed.add(part.block)
            self._limits.gone(part.block)
            self._expectations.unreadable(part.block)
            for number in tuple(self._waiting.get(part.block, ())):
                self._forget(number)
                actions.append(Refuse(number, event.error))

    def _end(self, stream: Stream) -> None:
        for number in [number for number, ticket in self._tickets.items() if ticket.stream == stream]:
            self._forget(number)
        for block, count in tuple(self.residency.held(stream).items()):
            for _ in range(count):
                self.residency.release(block, stream)
        self._expectations.end(stream)
        self._cycle.end(stream)
        self._route.end(stream)

    # --- parts of events --------------------------------------------------------------------------------------------

    def _grant(self, number: int, stream: Stream, block: BlockId, slot: Slot, actions: list[Action]) -> None:
        self.residency.lease(block, stream)
        finer: list[Slot] = []
        for residual in self._refinement.residuals(block):
            there = self.residency.slot(residual)
            if there is None:
                break
            self.residency.lease(residual, stream)
            finer.append(there)
        actions.append(Grant(number, block, slot, tuple(finer)))

    def _count(self, block: BlockId, hit: bool) -> None:
        name = f"{block.kind}_{'hits' if hit else 'misses'}"
        setattr(self.counters, name, getattr(self.counters, name) + 1)

    def _clear_out(self, actions: list[Action]) -> None:
        """Evict what lies beyond a limit and is free; give back the memory of all that is gone from there."""
        leaving = self._limits.leaving
        for block, slot in tuple(leaving.items()):
            if self.residency.evictable(block):
                self._evict(block)
            if self.residency.absent(block):
                del leaving[block]
                actions.append(Discard(slot.offset, slot.length))

    def _evict(self, block: BlockId) -> None:
        slot = self.residency.evict(block)
        if slot.region in self._eviction:
            self._eviction[slot.region].removed(block)
        self._expectations.evicted(block)
        self.counters.evictions += 1
        self._limits.gone(block)

    def _landed(self, number: int, now: float) -> Read:
        read, seconds = self._in_flight.land(number, now)
        self.counters.busy_seconds += seconds
        self._expectations.landed(read, seconds)
        return read

    def _forget(self, number: int) -> None:
        ticket = self._tickets.pop(number, None)
        for block in ticket.wants if ticket else ():
            waiting = self._waiting[block]
            waiting.remove(number)
            if not waiting:
                del self._waiting[block]
                self._queue.pop(block, None)

    # --- reads ------------------------------------------------------------------------------------------------------

    def _schedule(self, actions: list[Action], now: float) -> None:
        if self._queue and self._in_flight.has_room:
            self._issue(tuple(self._queue), actions, now, Purpose.DEMAND)
            if self._queue and self._in_flight.has_room:
                self._untangle(actions, now)
        if self._in_flight.has_room and all(map(self._leaves_others_alone, self._queue)):
            self._gone = len(self._cycle.order)
            self._issue(self._unread(self._cycle.upcoming()), actions, now, Purpose.CERTAIN)
            for purpose in (Purpose.CERTAIN, Purpose.GUESS) if self._expectations else ():
                if not self._queue and self._in_flight.has_room:
                    self._issue(self._unread(self._expectations.of(purpose)), actions, now, purpose)
            if self._expectations and not self._queue:
                self._refine(actions, now)

    def _refine(self, actions: list[Action], now: float) -> None:
        """Read residuals that are of use now, one on each drive that has nothing to read: a demand that comes meanwhile
        finds at most one read before it."""
        for block in self._unread(self._expectations.of(Purpose.REFINE)):
            home = self._homes[block]
            if not self._in_flight.is_idle(home.drive) or not self._refinement.allows(block, home.extent.length):
                continue
            slot = self._make_room(block, Purpose.REFINE)
            if slot is None:
                break
            self._start([Part(block, home.extent, slot)], actions, now, Purpose.REFINE)

    def _unread(self, blocks: Iterable[BlockId]) -> Iterator[BlockId]:
        """Those of ``blocks`` worth prefetching."""
        return (block for block in blocks if self.residency.absent(block) and block not in self._failed)

    def _is_busy(self, block: BlockId) -> bool:
        """Whether the drive of ``block`` has all the reads it may have."""
        return self._in_flight.is_busy(self._homes[block].drive)

    def _leaves_others_alone(self, block: BlockId) -> bool:
        """Whether ``block``, in demand, only waits for its drive: prefetches on the others take nothing from it."""
        return self._is_busy(block) and self._homes[block].region != STREAM

    def _issue(self, blocks: Iterable[BlockId], actions: list[Action], now: float, purpose: Purpose) -> None:
        full: set[str] = set()
        runs: dict[int, list[Part]] = {}  # by drive, the read that the next block there may join
        owed = 0  # bytes of the stream's room for what was passed over because its drive is busy
        for block in blocks:
            home = self._homes[block]
            run = runs.get(home.drive)
            if run and not joins(run[0].extent, run[-1].extent, home.extent, limit=self._read_limit):
                self._start(runs.pop(home.drive), actions, now, purpose)
                run = None
            if not run and self._is_busy(block):
                if not self._in_flight.has_room:
                    break
                owed += home.extent.length if home.region == STREAM else 0
                continue
            slot = None
            ahead = home.region == STREAM and purpose is not Purpose.DEMAND
            if home.region not in full and (not ahead or not owed or self._leaves_room(block, owed)):
                slot = self._make_room(block, purpose)
            if slot is not None:
                runs.setdefault(home.drive, []).append(Part(block, home.extent, slot))
            elif purpose is Purpose.DEMAND:
                full.add(home.region)  # what was asked for later may go to a region that has room
            else:
                break  # what comes later is needed later: nothing overtakes
        for run in runs.values():
            self._start(run, actions, now, purpose)

    def _leaves_room(self, block: BlockId, owed: int) -> bool:
        """Whether a prefetch of ``block`` leaves ``owed`` bytes for what is needed sooner."""
        region, needed_in = self._homes[block].region, self._cycle.distance(block)
        room = self.residency.regions[region].free_bytes - self._homes[block].extent.length
        with closing(self._eviction[region].victims()) as victims:
            for victim in victims:
                if room >= owed or self._cycle.distance(victim) <= needed_in:
                    break
                if self.residency.evictable(victim):
                    room += self._homes[victim].extent.length
        return room >= owed

    def _start(self, parts: list[Part], actions: list[Action], now: float, purpose: Purpose) -> None:
        drive = self._homes[parts[0].block].drive
        read = self._in_flight.start(parts, purpose, drive, now)
        self.counters.reads += 1
        self.counters.drive_bytes[drive] += read.size
        match purpose:
            case Purpose.DEMAND:
                self.counters.demand_bytes += read.size
            case Purpose.CERTAIN:
                self.counters.prefetch_bytes += read.size
            case Purpose.GUESS:
                self._expectations.started(read)
            case Purpose.REFINE:
                self.counters.refine_bytes += read.size
        for part in parts:
            self._queue.pop(part.block, None)
            if self._homes[part.block].region in (EXPERTS, RESIDUALS):
                self._refinement.read(part.block, part.extent.length)
        actions.append(read)

    def _make_room(self, block: BlockId, purpose: Purpose) -> Slot | None:
        region = self._homes[block].region
        ahead = region == STREAM and purpose is not Purpose.DEMAND
        needed_in = self._cycle.distance(block) if ahead else None
        if needed_in is not None and needed_in > self._gone:
            return None  # the read under way for whose sake it went ends with another look
        slot = self._limits.reserve(block)
        if slot is not None or region not in self._eviction:
            return slot
        awaited: list[BlockId] = []
        with closing(self._eviction[region].victims()) as victims:
            for victim in victims:
                if not self.residency.evictable(victim):
                    continue
                if victim in self._expectations:
                    awaited.append(victim)
                    continue
                if needed_in is not None:
                    distance = self._cycle.distance(victim)
                    if distance <= needed_in:
                        return None
                    self._gone = min(self._gone, distance)
                slot = self._replace(victim, block)
                if slot is not None:
                    return slot
        while awaited and slot is None and purpose is Purpose.DEMAND:
            slot = self._replace(awaited.pop(), block)
        return slot

    def _replace(self, victim: BlockId, block: BlockId) -> Slot | None:
        """Evict ``victim`` for the sake of ``block``; the slot if there is room now."""
        self._evict(victim)
        return self._limits.reserve(block)

    def _untangle(self, actions: list[Action], now: float) -> None:
        """If streams wait only for each other: let a demand overtake that fits, or else refuse one."""
        reading = {part.slot.region for part in self._in_flight.parts}
        wishes: dict[Stream, tuple[int, BlockId]] = {}
        moving: set[Stream] = set()  # these will get a block once its drive is less busy
        for block in self._queue:
            for number in self._waiting[block]:
                if self._is_busy(block):
                    moving.add(self._tickets[number].stream)
                elif self._homes[block].region not in reading:
                    wishes.setdefault(self._tickets[number].stream, (number, block))
        wishes = {stream: wish for stream, wish in wishes.items() if stream not in moving}
        holders = {region: set(self.residency.holders(region)) for region in self.residency.regions}
        if COPY_STREAM in wishes and COPY_STREAM in holders[self._homes[wishes[COPY_STREAM][1]].region]:
            del wishes[COPY_STREAM]  # what is being copied makes room
        if not wishes:
            return
        waits = {stream: self._homes[block].region for stream, (_, block) in wishes.items()}
        tangled = stuck(waits, holders, takes_turns=EXPERTS)
        for stream in waits:
            block = wishes[stream][1]
            slot = self._make_room(block, Purpose.DEMAND) if stream in tangled else None
            if slot is not None:
                self._start([Part(block, self._homes[block].extent, slot)], actions, now, Purpose.DEMAND)
                return
        if tangled:
            holding = set().union(*(holders[waits[stream]] for stream in tangled))
            chosen = next(stream for stream in waits if stream in (tangled & holding or tangled))
            number, block = wishes[chosen]
            slot = self._limits.overdraw(block)
            if slot is None:
                self._refuse(number, block, actions)
            else:
                self._start([Part(block, self._homes[block].extent, slot)], actions, now, Purpose.DEMAND)

    def _refuse(self, number: int, block: BlockId, actions: list[Action]) -> None:
        home = self._homes[block]
        region = self.residency.regions[home.region]
        error = UnplaceableModule(
            f"the weights of {block.module!r} ({format_size(home.extent.length)}) do not fit beside "
            f"{format_size(region.capacity - region.space.free_bytes)} that must stay while they are used; "
            f"raise {self.residency.name}_memory"
        )
        self._forget(number)
        actions.append(Refuse(number, error))

    # --- the accounts -----------------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise AssertionError unless every wish is queued or being read, and every read fills reserved slots."""
        self.residency.check_integrity()
        self._limits.check_integrity()
        self._in_flight.check_integrity()
        self._expectations.check_integrity(self.residency, self._in_flight.reads)
        reading = {part.block for part in self._in_flight.parts}
        assert all(self.residency.loading(block) for block in reading)
        assert all(self.residency.absent(block) and block in self._waiting for block in self._queue)
        assert self._waiting.keys() <= self._queue.keys() | reading
        for number, ticket in self._tickets.items():
            assert ticket.wants
            assert all(number in self._waiting[block] for block in ticket.wants)
        assert sum(len(waiting) for waiting in self._waiting.values()) == sum(
            len(ticket.wants) for ticket in self._tickets.values()
        )
