"""Watches a planner: applies events to it, and checks each action against the ledger of bytes and wishes."""

import itertools
from collections.abc import Mapping

from penstock.tiering.errors import ReadError, UnplaceableModule
from penstock.tiering.events import (
    Acquire,
    Action,
    Begin,
    Cancel,
    Discard,
    End,
    Event,
    Expect,
    Grant,
    Purpose,
    Read,
    ReadDone,
    ReadFailed,
    Refuse,
    Release,
    Resize,
    Slot,
)
from penstock.tiering.planner.regions import EXPERTS, KEPT, RESIDUALS, STREAM
from penstock.tiering.units import PAGE, BlockId
from tests.support.worlds.ledger import Ledger, StreamModel
from tests.support.worlds.worlds import REGIONS, World


class Watch(Ledger):
    """A planner's world, in which ``streams`` streams and the drive do what they are told to."""

    def __init__(self, world: World, streams: int = 0) -> None:
        super().__init__(world, streams)
        self.tickets = 0
        self.now = 0.0
        self.log: list[Action] = []

    # --- events -----------------------------------------------------------------------------------------------------

    def pass_time(self) -> None:
        """Before each event."""
        self.now += 1

    def apply(self, event: Event) -> list[Action]:
        self.pass_time()
        idle = not self.queue and not isinstance(event, Acquire | Resize)
        order, leaving = self.planner._cycle.order, {b for b, slot in self.slots.items() if self.beyond(slot)}
        before = set(self.ready)
        waited = any(self.region(block) == EXPERTS for block in self.queue)
        absent = [b for b in self.planner._cycle.order if self.planner.residency.absent(b)]
        actions = self.planner.handle(event, self.now)
        self.log = actions
        if order != self.planner._cycle.order:
            self.reposition(order)
        for action in actions:
            match action:
                case Read():
                    self.check_read(action)
                case Grant():
                    self.check_grant(action)
                case Refuse():
                    self.check_refusal(action)
                    for block in {block for block in before & self.ready if self.planner.residency.slot(block) is None}:
                        self.vacate(block)  # went for its sake, in vain
                case Discard():
                    self.check_discard(action)
        gone = {block for block in before if self.planner.residency.slot(block) is None}
        expected = {block for stream in self.streams.values() for block in stream.expects}
        early = set() if waited or isinstance(event, Resize) else (gone - leaving) & expected
        assert not early, "evicted what is expected, for something that nobody wants yet"
        for block in gone & self.ready:  # evicted, and nothing was read over it yet
            self.vacate(block)
        absent += gone & leaving
        if idle and absent:
            nearest = min(self.distance(b) for b in absent)
            for victim in gone - leaving:
                if self.region(victim) == STREAM:
                    assert self.distance(victim) > nearest, f"{victim} went for nothing that is needed sooner"
        self.check()
        return actions

    def check(self) -> None:
        self.planner.check_integrity()
        for drive in range(self.world.drives):
            flying = [read for read in self.in_flight.values() if self.drive(read.parts[0].block) == drive]
            assert len(flying) <= self.world.depth
        for region in REGIONS:
            slots = [slot for block, slot in self.slots.items() if self.region(block) == region]
            assert sum(slot.length for slot in slots) <= self.world.capacity[region]
            assert sum(slot.length for slot in slots if not self.beyond(slot)) <= self.limits[region]
        for block, slot in self.slots.items():
            if self.beyond(slot):
                assert self.leased(block) or block in self.loading(), (
                    f"{block} is beyond the limit, and nobody holds it"
                )
        for page in self.touched - self.owner.keys():
            region = next(r for r in reversed(REGIONS) if page >= self.starts[r])
            assert page < self.end_of(region), "memory beyond the limit that nobody uses"
        assert not self.issuable(), "somebody waits, there is room and the drive has nothing better to do"
        for stream in self.streams.values():
            held = {block: count for block, count in stream.held.items() if count}
            assert dict(self.planner.residency.held(stream.number)) == held, "holds something else than it was granted"
            for block in stream.wants:
                assert block in self.queue or block in self.loading(), f"{block} is forgotten"

    def check_read(self, read: Read) -> None:
        extents = [part.extent for part in read.parts]
        assert read.read not in self.in_flight
        assert read.parts
        assert all(a.file == b.file and a.end == b.offset for a, b in itertools.pairwise(extents))
        assert len(extents) == 1 or sum(e.length for e in extents) <= self.world.read_limit
        demand = read.purpose is Purpose.DEMAND
        if not demand:
            assert not self.issuable(), "demand before prefetch"
            waiting = {self.region(block) for block in self.queue} - {KEPT}  # there each has a place of its own
            assert not any(part.slot.region in waiting for part in read.parts), "room that a demand waits for"
            if any(part.slot.region in (EXPERTS, RESIDUALS) for part in read.parts):
                wanted = {pair for stream in self.streams.values() for pair in stream.expects.items()}
                assert all((part.block, read.purpose) in wanted for part in read.parts), "nobody expects it"
        for part in read.parts:
            block, slot = part.block, part.slot
            assert part.extent == self.world.homes[block].extent
            assert block not in self.loading(), "read twice at once"
            self.vacate(block)
            if self.beyond(slot):
                assert demand, "a prefetch beyond the limit"
            else:
                assert slot.region == self.region(block)
            assert self.world.homes[block].place in (None, slot.offset) or slot.region == STREAM
            assert slot.length == part.extent.length
            start = self.starts[slot.region]
            assert start <= slot.offset
            assert slot.offset + slot.length <= start + self.world.capacity[slot.region], "outside of its region"
            assert (block in self.queue) == demand
            assert (slot.region == RESIDUALS) == (read.purpose is Purpose.REFINE)
            for page in range(slot.offset, slot.offset + slot.length, PAGE):
                victim = self.owner.get(page)
                if victim is not None:
                    if not demand and slot.region == STREAM:
                        assert self.distance(victim) > self.distance(block), "evicted what is needed sooner"
                    self.vacate(victim)
                self.owner[page] = block
                self.touched.add(page)
            self.slots[block] = slot
            if block in self.queue:
                self.queue.remove(block)
        if read.purpose is Purpose.REFINE:
            assert not self.queue, "a residual though somebody waits"
            drive = self.drive(read.parts[0].block)
            assert all(self.drive(other.parts[0].block) != drive for other in self.in_flight.values()), "beside a read"
        self.account(read)
        self.in_flight[read.read] = read

    def check_discard(self, discard: Discard) -> None:
        for page in range(discard.offset, discard.offset + discard.length, PAGE):
            if page in self.owner:
                self.vacate(self.owner[page])
            self.touched.discard(page)

    def check_bytes(self, block: BlockId, slot: Slot) -> None:
        assert block in self.ready
        assert self.slots[block] == slot
        assert all(self.owner[page] == block for page in range(slot.offset, slot.offset + slot.length, PAGE))

    def check_grant(self, grant: Grant) -> None:
        (stream,) = (s for s in self.streams.values() if s.ticket == grant.ticket)
        stream.wants.remove(grant.block)
        residuals = itertools.takewhile(self.ready.__contains__, self.residuals.get(grant.block, ()))
        assert grant.leased == (grant.block, *residuals), "residuals that are here are leased along"
        stream.held.update(grant.leased)
        for residual, slot in zip(grant.leased[1:], grant.residual_slots, strict=True):
            self.check_bytes(residual, slot)
        if not stream.wants:
            stream.ticket = None
        self.check_bytes(grant.block, grant.slot)

    def check_refusal(self, refusal: Refuse) -> None:
        (stream,) = (s for s in self.streams.values() if s.ticket == refusal.ticket)
        if isinstance(refusal.error, UnplaceableModule):
            head = [b for b in self.queue if b in stream.wants]
            assert head
            assert not any(self.fits(block, beyond=True) for block in head)
            region = self.region(head[0])
            assert not any(self.region(block) == region for block in self.loading()), "that read makes room yet"
            for other in self.streams.values():
                if any(n and self.region(b) == region for b, n in other.held.items()):
                    assert other.ticket is not None, f"stream {other.number} runs and will make room"
                    assert not any(b not in self.queue or self.fits(b) for b in other.wants), "could go on"
        else:
            assert isinstance(refusal.error, ReadError)
        stream.failed = True
        self.forget(stream)

    # --- what streams and the drive do ------------------------------------------------------------------------------

    def begin(self, stream: StreamModel) -> None:
        stream.running = True
        self.positions[stream.number] = 0
        self.apply(Begin(stream.number))

    def end(self, stream: StreamModel) -> None:
        self.forget(stream)
        stream.held.clear()
        stream.expects.clear()
        stream.running = stream.failed = False
        self.positions.pop(stream.number, None)
        self.apply(End(stream.number))

    def acquire(self, stream: StreamModel, blocks: tuple[BlockId, ...]) -> list[Action]:
        assert stream.ticket is None
        self.tickets += 1
        stream.ticket, stream.wants = self.tickets, set(blocks)
        for block in blocks:
            stream.expects.pop(block, None)
        if not blocks:
            stream.ticket = None
        order = self.planner._cycle.order
        for block in blocks:
            if block not in self.ready and block not in self.loading() and block not in self.queue:
                self.queue.append(block)
            if block in order and stream.number in self.positions:
                self.positions[stream.number] = order.index(block) + 1
        return self.apply(Acquire(self.tickets, stream.number, blocks))

    def release(self, stream: StreamModel, *blocks: BlockId) -> list[Action]:
        for block in blocks:
            self.check_bytes(block, self.slots[block])
            stream.held[block] -= 1
            if not stream.held[block]:
                del stream.held[block]
        return self.apply(Release(stream.number, blocks))

    def expect(
        self,
        stream: StreamModel,
        certain: tuple[BlockId, ...],
        guessed: tuple[BlockId, ...],
        residuals: tuple[BlockId, ...] = (),
    ) -> None:
        stream.expects = dict.fromkeys(residuals, Purpose.REFINE)
        stream.expects |= dict.fromkeys(guessed, Purpose.GUESS) | dict.fromkeys(certain, Purpose.CERTAIN)
        self.apply(Expect(stream.number, certain, guessed, 0.001, residuals))

    def cancel(self, stream: StreamModel) -> None:
        ticket = stream.ticket
        assert ticket is not None
        self.forget(stream)
        self.apply(Cancel(ticket))

    def resize(self, limits: Mapping[str, int]) -> None:
        self.limits |= limits
        self.apply(Resize(limits))

    def complete(self, number: int) -> None:
        for part in self.in_flight.pop(number).parts:
            self.ready.add(part.block)
        self.apply(ReadDone(number))

    def fail(self, number: int) -> None:
        for part in self.in_flight.pop(number).parts:
            self.vacate(part.block)
            if any(part.block in stream.wants for stream in self.streams.values()):
                self.queue.append(part.block)  # until its refusal is seen
        self.apply(ReadFailed(number, ReadError("injected")))

    def run_out(self, bad: frozenset[BlockId] = frozenset()) -> None:
        """Nothing new is asked for; all take, use and give back what they get. Nobody may be left waiting."""
        for _ in range(1000):
            if self.in_flight:
                number = min(self.in_flight)
                broken = any(part.block in bad for part in self.in_flight[number].parts)
                (self.fail if broken else self.complete)(number)
            elif not self.let_go():
                break
        else:
            raise AssertionError("reads go on for ever though nobody asks")
        self.check_done()

    def let_go(self) -> bool:
        """Some stream uses what it has got and gives it back, or is through; whether there was one."""
        for stream in self.streams.values():
            experts = [b for b in stream.held if b.kind == "expert"]
            if stream.failed or (stream.ticket is None and stream.held):
                self.end(stream)
                return True
            if experts:
                self.release(stream, experts[0])
                return True
        return False

    def check_done(self) -> None:
        """Nobody waits any more."""
        assert not any(stream.ticket is not None for stream in self.streams.values()), "left waiting"
        assert self.planner.idle
