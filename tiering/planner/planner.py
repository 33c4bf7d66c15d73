"""The planner: decides which blocks are read, granted and evicted (pure).

``handle(event, now)`` returns the actions to perform.

Theory of operation. Streams (compute threads) *acquire* blocks and *release* them. A ready block is granted at once. An
absent block joins the demand queue, in the order of requests. The queue is turned into reads while fewer than ``depth``
are in flight on the block's drive, and while room can be made by evicting blocks that are neither leased nor loading.

Prefetches start only when no demand is left that could be issued. They come in this order:

1. Dense blocks that come next in the cycle. They never evict a block that is needed sooner.
2. Experts that a stream expects, certain ones before guesses. They never evict one another.
3. Residuals, to a drive with nothing else to read, as many as ``Refinement`` allows.

A block that could not be read is not prefetched again: it waits for the next demand, a residual for some time.

A block whose drive is busy is passed over, so that a slow drive does not hold up the others. A later demand may take
the room of a block that was passed over. A prefetch may not: it would be read in vain.

No stream waits for ever. In the region of experts a waiting stream holds only leases that it will use and release
before it waits again. In the streaming region a waiting stream normally holds nothing. Some models force it to hold
leases, when weights are used outside of their module's forward. If all holders wait, the planner recognises it: a
demand that fits may overtake, else one may pass the region's limit, else one is refused with an error that names it.
requests.py has the queue, evicting.py makes room, scheduling.py starts the reads.

=============  ==========================================================================================
event          what it changes
=============  ==========================================================================================
Begin, End     position of the stream in the cycle; End also takes back leases and tickets left behind
Acquire        grants for ready blocks and their residuals, tickets on loading blocks, demand for absent ones
Release        one lease less; room for the demand queue and for prefetch
Expect         experts that a stream will ask for, and residuals that it can use: read when drives are idle, and kept
               for it meanwhile
Cancel         the ticket is forgotten
ReadDone       loading -> ready; grants for all that wait
ReadFailed     loading -> absent; refusals for all that wait
Resize         limits of the regions; blocks beyond a limit go as soon as they are not leased, with their memory
=============  ==========================================================================================
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..events import (
    Acquire,
    Action,
    Begin,
    Cancel,
    End,
    Event,
    Expect,
    Grant,
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
from ..policy.prefetch.refinement import Refinement
from ..policy.prefetch.route import Route
from ..policy.prefetch.speculation import Speculation
from ..units import BlockId
from .counters import Counters
from .evicting import Room
from .expectations import Expectations
from .inflight import InFlight
from .regions import EXPERTS, RESIDUALS, STREAM, Home, Limits
from .requests import Requests
from .residency import Residency
from .scheduling import Scheduler


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
        """At most ``depth`` reads are in flight on each of ``drives``. Neighbours join into reads of at most
        ``read_limit`` bytes."""
        self.residency, self.counters = residency, Counters(drive_bytes=[0] * drives)
        self.speculation = speculation or Speculation()
        self._expectations = Expectations(self.counters, self.speculation)
        self._limits, self._cycle = Limits(residency, homes, cycle), cycle
        self._homes = self._limits.homes
        self.experts = tuple(block for block in homes if block.kind == "expert")
        """The blocks of experts, in the order of their layers."""
        self.uses: Counter[BlockId] | None = None
        """How often each expert was asked for; None while nobody wants to know."""
        self._route = Route(block.module for block in homes)
        self._refinement = Refinement({block: home.extent.length for block, home in homes.items()})
        self._policies: dict[str, Eviction] = {
            STREAM: cycle,
            EXPERTS: experts(self._route),
            RESIDUALS: EVICTION["lfu"](self._route),  # the hottest stay
        }
        self._convoys = Convoys(self._route, (STREAM, EXPERTS))
        self._measure()
        self._in_flight, self._requests = InFlight(drives, depth), Requests(residency)
        self._room = Room(residency, self._limits, cycle, self._policies, self._expectations, self.counters)
        self._scheduler = Scheduler(
            residency,
            self._limits,
            self._requests,
            self._room,
            cycle=cycle,
            expectations=self._expectations,
            refinement=self._refinement,
            in_flight=self._in_flight,
            counters=self.counters,
            read_limit=read_limit,
        )

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take ``event`` in, at monotonic time ``now`` in seconds; the actions to perform, in order."""
        actions: list[Action] = []
        match event:
            case Acquire():
                if not self._acquire(event, actions):
                    return actions  # all are resident: nothing that could be read has changed
            case Release():
                if self.give_back(event.stream, event.blocks):
                    return actions
                self.residency.release_all(event.blocks, event.stream)
            case Expect():
                self._policies[RESIDUALS].used(event.residuals)
                self._expectations.expect(event)
            case ReadDone():
                self._read_done(event, actions, now)
            case ReadFailed():
                self._read_failed(event, actions, now)
            case Begin():
                self._begin(event.stream)
            case End():
                self._end(event.stream)
            case Cancel():
                self._requests.forget(event.ticket)
            case Resize():
                actions += self._limits.resize(event.limits)
                self._measure()
        if self._limits.leaving:
            self._room.clear_out(actions)
        self._scheduler.schedule(actions, now)
        return actions

    def lease_resident(self, stream: Stream, blocks: Sequence[BlockId], region: str | None = None) -> list[Slot] | None:
        """As Acquire and the grants that follow: lease ``blocks`` for ``stream`` and return their slots. None, and
        nothing has happened, unless all are ready, and in ``region`` if that is given, and no block has residuals."""
        slots: list[Slot] = []
        for block in blocks:
            slot = self.residency.slot(block)
            if slot is None or region not in (None, slot.region):
                return None
            slots.append(slot)
        if self._refinement.has_residuals:
            return None
        for used in self._use(stream, blocks):
            experts = sum(block.kind == "expert" for block in used)
            self.counters.expert_hits += experts
            self.counters.dense_hits += len(used) - experts
        self.residency.lease_all(blocks, stream)
        return slots

    def give_back(self, stream: Stream, blocks: Sequence[BlockId]) -> bool:
        """As Release, if nobody wants the room of ``blocks``. Returns whether that is so; otherwise nothing has
        happened."""
        if self._requests.queue or self._expectations or self._limits.leaving:
            return False
        if any(self._homes[block].region == STREAM for block in blocks):
            return False
        self.residency.release_all(blocks, stream)
        return True

    @property
    def homes(self) -> Mapping[BlockId, Home]:
        """Where each block comes from and goes to, now."""
        return self._homes

    @property
    def idle(self) -> bool:
        """Whether no request waits."""
        return not (self._requests.tickets or self._requests.waiting or self._requests.queue)

    @property
    def eviction(self) -> str:
        """The name of the policy by which experts are evicted now."""
        return self._policies[EXPERTS].name

    @property
    def has_all_experts(self) -> bool:
        """Whether all experts are in memory or on their way: there is nothing to guess."""
        return self.residency.count(EXPERTS) == len(self.experts)

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
        """Tell the convoys where blocks go now, and the refinement how much room experts and residuals have."""
        self._convoys.measure((home.region, block.module, home.extent.length) for block, home in self._homes.items())
        limits = {name: region.limit for name, region in self.residency.regions.items()}
        self._refinement.measure(limits.get(EXPERTS, 0), limits.get(RESIDUALS, 0))

    # --- events -----------------------------------------------------------------------------------------------------

    def _acquire(self, event: Acquire, actions: list[Action]) -> bool:
        """Grant what is resident, queue the rest; whether anything is missing."""
        assert len(set(event.blocks)) == len(event.blocks)
        self._use(event.stream, event.blocks)
        missing = False
        for block in event.blocks:
            region = self._homes[block].region
            slot = self.residency.slot(block)
            if region in (STREAM, EXPERTS):
                self._count(block, slot is not None)
            if slot is not None:
                self._grant(event.ticket, event.stream, block, slot, actions)
            else:
                missing = True
                self._requests.wait(event.ticket, event.stream, block)
        if missing:
            self._expectations.crowd()
        return missing

    def _read_done(self, event: ReadDone, actions: list[Action], now: float) -> None:
        parts = self._landed(event.read, now).parts
        self._limits.arrived(part.block for part in parts)
        for part in parts:
            slot = self.residency.arrive(part.block)
            self._scheduler.unreadable.discard(part.block)
            if slot.region in self._policies:
                self._policies[slot.region].inserted(part.block)
            for number, stream in self._requests.arrived(part.block):
                self._grant(number, stream, part.block, slot, actions)

    def _read_failed(self, event: ReadFailed, actions: list[Action], now: float) -> None:
        for part in self._landed(event.read, now).parts:
            self.residency.abandon(part.block)
            if self._homes[part.block].region == RESIDUALS:
                self._refinement.failed(part.block)
                self.counters.refine_failures += 1
            else:
                self._scheduler.unreadable.add(part.block)
            self._limits.gone(part.block)
            self._expectations.unreadable(part.block)
            for number in tuple(self._requests.waiting.get(part.block, ())):
                self._requests.forget(number)
                actions.append(Refuse(number, event.error))

    def _begin(self, stream: Stream) -> None:
        self._cycle.begin(stream)
        self._route.begin(stream)
        for policy in self._policies.values():
            policy.tick()
        self.speculation.tick()
        self._refinement.tick()

    def _end(self, stream: Stream) -> None:
        self._requests.forget_stream(stream)
        for block, count in tuple(self.residency.held(stream).items()):
            for _ in range(count):
                self.residency.release(block, stream)
        self._expectations.end(stream)
        self._cycle.end(stream)
        self._route.end(stream)

    # --- parts of events --------------------------------------------------------------------------------------------

    def _use(self, stream: Stream, blocks: Sequence[BlockId]) -> list[list[BlockId]]:
        """``stream`` asks for ``blocks``, resident or not. Returns those that are streamed, and those of experts."""
        self._expectations.asked(stream, blocks)
        if blocks:
            self._route.reach(stream, blocks[0].module)
        used: list[list[BlockId]] = [[], []]  # residuals count as used when they are expected, resident or not
        for block in blocks:
            region = self._homes[block].region
            if region == EXPERTS:
                used[1].append(block)
                continue
            self._cycle.advance(stream, block)
            if region == STREAM:
                used[0].append(block)
        for region, some in zip((STREAM, EXPERTS), used, strict=True):
            if some:
                self._policies[region].used(some)
        if self.uses is not None:
            self.uses.update(used[1])
        return used

    def _grant(self, number: int, stream: Stream, block: BlockId, slot: Slot, actions: list[Action]) -> None:
        self.residency.lease(block, stream)
        residual_slots: list[Slot] = []
        for residual in self._refinement.residuals(block):
            there = self.residency.slot(residual)
            if there is None:
                break
            self.residency.lease(residual, stream)
            residual_slots.append(there)
        actions.append(Grant(number, block, slot, tuple(residual_slots)))

    def _count(self, block: BlockId, hit: bool) -> None:
        name = f"{block.kind}_{'hits' if hit else 'misses'}"
        setattr(self.counters, name, getattr(self.counters, name) + 1)

    def _landed(self, number: int, now: float) -> Read:
        read, seconds = self._in_flight.land(number, now)
        self.counters.busy_seconds += seconds
        self._expectations.landed(read, seconds)
        return read

    # --- the accounts -----------------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise AssertionError unless every wish is queued or being read, and every read fills reserved slots."""
        self.residency.check_integrity()
        self._limits.check_integrity()
        self._in_flight.check_integrity()
        self._expectations.check_integrity(self.residency, self._in_flight.reads)
        reading = {part.block for part in self._in_flight.parts}
        assert all(self.residency.loading(block) for block in reading)
        self._requests.check_integrity(reading)
