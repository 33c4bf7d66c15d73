"""Decides what is read, granted and evicted (pure): ``handle(event, now)`` returns the actions to perform.

Theory of operation. Streams (compute threads) *acquire* blocks and *release* them. A block that is ready is granted at
once. An absent one joins the demand queue, in the order asked for; the queue is turned into reads as long as fewer than
``depth`` are in flight and room can be made by evicting what is neither leased nor loading. Only when no demand is left
to issue do certain prefetches go out, along the cycle of dense blocks, and they never evict a block that is needed
sooner than the one they bring. What could not be read is not prefetched again: it waits for the next demand.

Why nobody waits for ever: in an expert region a stream that waits holds only leases that were granted to it and that it
will take, use and give back before it waits again. In the streaming region a stream normally holds nothing while it
waits; where a model forces it to (weights used outside of their module's forward), the case in which all holders wait
is recognised: a demand that fits may overtake; if none does, one may pass a region's limit, since what has room in all
of the memory must not fail for want of it; and if that does not help, one is refused with an error that names it.

=============  ==========================================================================================
event          what it changes
=============  ==========================================================================================
Begin, End     position of the stream in the cycle; End also takes back leases and tickets left behind
Acquire        grants for ready blocks, tickets on loading blocks, demand for absent ones
Release        one lease less; room for the demand queue and for prefetch
Cancel         the ticket's wishes are forgotten
ReadDone       loading -> ready; grants for all who wait
ReadFailed     loading -> absent; refusals for all who wait
Resize         limits of the regions; what lies beyond goes as soon as nobody holds it, its memory is given back
=============  ==========================================================================================
"""

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from .coalesce import coalesce
from .deadlock import stuck
from .errors import UnplaceableModule
from .events import (
    Acquire,
    Action,
    Begin,
    Cancel,
    Discard,
    End,
    Event,
    Grant,
    Part,
    Read,
    ReadDone,
    ReadFailed,
    Refuse,
    Release,
    Resize,
    Slot,
    Stream,
)
from .limits import EXPERTS, STREAM, Home, Limits
from .policy.cycle import Cycle
from .policy.eviction import Eviction
from .residency import Residency
from .units import BlockId, format_size


@dataclass(slots=True)
class Counters:
    """Running totals, in blocks, bytes and seconds."""

    expert_hits: int = 0
    expert_misses: int = 0
    dense_hits: int = 0
    dense_misses: int = 0
    demand_bytes: int = 0
    prefetch_bytes: int = 0
    reads: int = 0
    evictions: int = 0
    busy_seconds: float = 0.0


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
        experts: Eviction,
        depth: int,
        read_limit: int,
    ) -> None:
        """``depth`` reads in flight at most; neighbours join into reads of at most ``read_limit`` bytes."""
        self.residency, self.counters = residency, Counters()
        self._limits, self._cycle = Limits(residency, homes, cycle), cycle
        self._homes = self._limits.homes
        self._eviction: dict[str, Eviction] = {STREAM: cycle, EXPERTS: experts}
        self._depth, self._read_limit = depth, read_limit
        self._tickets: dict[int, _Ticket] = {}
        self._waiting: dict[BlockId, list[int]] = {}
        self._queue: dict[BlockId, None] = {}  # absent blocks in demand, in order
        self._in_flight: dict[int, Read] = {}
        self._gone = 0  # distance of the nearest block that this pass of prefetching evicted: none further is brought
        self._failed: set[BlockId] = set()  # read in vain, and not in demand since
        self._busy_since = 0.0
        self._next_read = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take ``event`` in, at monotonic time ``now`` in seconds; the actions to perform, in order."""
        actions: list[Action] = []
        match event:
            case Acquire():
                self._acquire(event, actions)
                if event.ticket not in self._tickets:
                    return actions  # all here: nothing that could be read has changed
            case Release():
                self.residency.release(event.block, event.stream)
                if not self._queue and not self._limits.leaving and self._homes[event.block].region != STREAM:
                    return actions  # room that nobody wants: only the streaming region is prefetched into
            case ReadDone():
                self._read_done(event, actions, now)
            case ReadFailed():
                self._read_failed(event, actions, now)
            case Begin():
                self._cycle.begin(event.stream)
                for policy in self._eviction.values():
                    policy.tick()
            case End():
                self._end(event.stream)
            case Cancel():
                self._forget(event.ticket)
            case Resize():
                actions += self._limits.resize(event.limits)
        if self._limits.leaving:
            self._clear_out(actions)
        self._schedule(actions, now)
        return actions

    # --- events -----------------------------------------------------------------------------------------------------

    def _acquire(self, event: Acquire, actions: list[Action]) -> None:
        assert len(set(event.blocks)) == len(event.blocks)
        ticket = _Ticket(event.stream)
        for block in event.blocks:
            region = self._homes[block].region
            slot = self.residency.slot(block)
            if region != EXPERTS:
                self._cycle.advance(event.stream, block)
            if region in self._eviction:
                self._eviction[region].used(block)
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
            self._failed.add(part.block)
            self._limits.gone(part.block)
            for number in tuple(self._waiting.get(part.block, ())):
                self._forget(number)
                actions.append(Refuse(number, event.error))

    def _end(self, stream: Stream) -> None:
        for number in [number for number, ticket in self._tickets.items() if ticket.stream == stream]:
            self._forget(number)
        for block, count in tuple(self.residency.held(stream).items()):
            for _ in range(count):
                self.residency.release(block, stream)
        self._cycle.end(stream)

    # --- parts of events --------------------------------------------------------------------------------------------

    def _grant(self, number: int, stream: Stream, block: BlockId, slot: Slot, actions: list[Action]) -> None:
        self.residency.lease(block, stream)
        actions.append(Grant(number, block, slot))

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
        self.counters.evictions += 1
        self._limits.gone(block)

    def _landed(self, number: int, now: float) -> Read:
        read = self._in_flight.pop(number)
        if not self._in_flight:
            self.counters.busy_seconds += now - self._busy_since
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
        if self._queue and len(self._in_flight) < self._depth:
            self._issue(tuple(self._queue), actions, now, demand=True)
            if self._queue and len(self._in_flight) < self._depth:
                self._untangle(actions, now)
        if not self._queue and len(self._in_flight) < self._depth:
            self._gone = len(self._cycle.order)
            absent = (b for b in self._cycle.upcoming() if self.residency.absent(b) and b not in self._failed)
            self._issue(absent, actions, now, demand=False)

    def _issue(self, blocks: Iterable[BlockId], actions: list[Action], now: float, *, demand: bool) -> None:
        full: set[str] = set()
        with closing(coalesce(((b, self._homes[b].extent) for b in blocks), limit=self._read_limit)) as runs:
            for run in runs:
                parts: list[Part] = []
                for block, extent in run:
                    if not parts and len(self._in_flight) >= self._depth:
                        return
                    region = self._homes[block].region
                    slot = None if region in full else self._make_room(block, demand=demand)
                    if slot is not None:
                        parts.append(Part(block, extent, slot))
                        continue
                    full.add(region)
                    self._start(parts, actions, now, demand=demand)
                    if not demand:
                        return  # what comes later is needed later: nothing overtakes
                    parts = []  # the rest of the run may go to a region that has room
                self._start(parts, actions, now, demand=demand)

    def _start(self, parts: list[Part], actions: list[Action], now: float, *, demand: bool) -> None:
        if not parts:
            return
        if not self._in_flight:
            self._busy_since = now
        read = Read(self._next_read, tuple(parts), demand)
        self._next_read += 1
        self._in_flight[read.read] = read
        self.counters.reads += 1
        size = sum(part.extent.length for part in parts)
        if demand:
            self.counters.demand_bytes += size
        else:
            self.counters.prefetch_bytes += size
        for part in parts:
            self._queue.pop(part.block, None)
        actions.append(read)

    def _make_room(self, block: BlockId, *, demand: bool) -> Slot | None:
        region = self._homes[block].region
        needed_in = None if demand else self._cycle.distance(block)
        if needed_in is not None and needed_in > self._gone:
            return None  # the read under way for whose sake it went ends with another look
        slot = self._limits.reserve(block)
        if slot is not None or region not in self._eviction:
            return slot
        with closing(self._eviction[region].victims()) as victims:
            for victim in victims:
                if not self.residency.evictable(victim):
                    continue
                if needed_in is not None:
                    distance = self._cycle.distance(victim)
                    if distance <= needed_in:
                        return None
                    self._gone = min(self._gone, distance)
                self._evict(victim)
                slot = self._limits.reserve(block)
                if slot is not None:
                    return slot
        return None

    def _untangle(self, actions: list[Action], now: float) -> None:
        """If streams wait only for each other: let a demand overtake that fits, or else refuse one."""
        reading = {part.slot.region for read in self._in_flight.values() for part in read.parts}
        wishes: dict[Stream, tuple[int, BlockId]] = {}
        for block in self._queue:
            if self._homes[block].region not in reading:
                for number in self._waiting[block]:
                    wishes.setdefault(self._tickets[number].stream, (number, block))
        if not wishes:
            return
        holders = {region: set(self.residency.holders(region)) for region in self.residency.regions}
        waits = {stream: self._homes[block].region for stream, (_, block) in wishes.items()}
        tangled = stuck(waits, holders, takes_turns=EXPERTS)
        for stream in waits:
            block = wishes[stream][1]
            slot = self._make_room(block, demand=True) if stream in tangled else None
            if slot is not None:
                self._start([Part(block, self._homes[block].extent, slot)], actions, now, demand=True)
                return
        if tangled:
            holding = set().union(*(holders[waits[stream]] for stream in tangled))
            chosen = next(stream for stream in waits if stream in (tangled & holding or tangled))
            number, block = wishes[chosen]
            slot = self._limits.overdraw(block)
            if slot is None:
                self._refuse(number, block, actions)
            else:
                self._start([Part(block, self._homes[block].extent, slot)], actions, now, demand=True)

    def _refuse(self, number: int, block: BlockId, actions: list[Action]) -> None:
        home = self._homes[block]
        region = self.residency.regions[home.region]
        error = UnplaceableModule(
            f"the weights of {block.module!r} ({format_size(home.extent.length)}) do not fit beside "
            f"{format_size(region.capacity - region.space.free_bytes)} that must stay while they are used; "
            "raise host_memory"
        )
        self._forget(number)
        actions.append(Refuse(number, error))

    # --- the accounts -----------------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise AssertionError unless every wish is queued or being read, and every read fills reserved slots."""
        self.residency.check_integrity()
        self._limits.check_integrity()
        reading = {part.block for read in self._in_flight.values() for part in read.parts}
        assert len(self._in_flight) <= self._depth
        assert all(self.residency.loading(block) for block in reading)
        assert all(self.residency.absent(block) and block in self._waiting for block in self._queue)
        assert self._waiting.keys() <= self._queue.keys() | reading
        for number, ticket in self._tickets.items():
            assert ticket.wants
            assert all(number in self._waiting[block] for block in ticket.wants)
        assert sum(len(waiting) for waiting in self._waiting.values()) == sum(
            len(ticket.wants) for ticket in self._tickets.values()
        )
