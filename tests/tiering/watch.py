"""A model that only watches a planner: which bytes belong to whom, who waits, who holds; and random worlds for it."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

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
from penstock.tiering.limits import EXPERTS, KEPT, PINNED, STREAM, Home
from penstock.tiering.planner import Planner
from penstock.tiering.policy.cycle import Cycle
from penstock.tiering.policy.eviction import EVICTION
from penstock.tiering.residency import Residency
from penstock.tiering.units import PAGE, BlockId, Extent

HOUSE = -1
REGIONS = (PINNED, KEPT, STREAM, EXPERTS)


@dataclass
class World:
    """Blocks, where they lie, and how much room there is."""

    homes: dict[BlockId, Home]
    capacity: dict[str, int]
    depth: int
    read_limit: int
    eviction: str = "lru"

    def planner(self) -> Planner:
        order = [block for block, home in self.homes.items() if home.region in (STREAM, KEPT)]
        return Planner(
            Residency("host", self.capacity),
            self.homes,
            cycle=Cycle(order),
            experts=EVICTION[self.eviction](),
            depth=self.depth,
            read_limit=self.read_limit,
            drives=self.drives,
        )

    def largest(self, *regions: str) -> int:
        """Bytes of the largest block of these regions."""
        return max((home.extent.length for home in self.homes.values() if home.region in regions), default=0)

    @property
    def drives(self) -> int:
        return max((home.drive for home in self.homes.values()), default=0) + 1

    def inside(self, region: str) -> list[BlockId]:
        return [block for block, home in self.homes.items() if home.region == region]


def lay_out(
    sizes: list[tuple[BlockId, str, int]], second_file_at: int | None = None, drives: Sequence[int] = ()
) -> dict[BlockId, Home]:
    """Blocks (id, region, pages) end to end on flash, in one file or two; or each at the end of the drive that
    ``drives`` gives it."""
    homes, file, ends = {}, 0, Counter[int]()
    for number, (block, region, pages) in enumerate(sizes):
        drive = drives[number] if drives else 0
        if drives:
            file = drive
        elif number == second_file_at:
            file = 1
        homes[block] = Home(Extent(file, ends[drive], pages * PAGE), region, drive)
        ends[drive] += pages * PAGE
    return homes


@st.composite
def worlds(draw: st.DrawFn) -> World:
    sizes: list[tuple[BlockId, str, int]] = []
    capacity = {}
    expert_pages = draw(st.one_of(st.just(2), st.none()))  # all experts the same size, or not
    for region, most in ((PINNED, 2), (KEPT, 4), (STREAM, 6), (EXPERTS, 8)):
        here = []
        for part in range(draw(st.integers(0, most))):
            block = BlockId("expert", "m", part) if region == EXPERTS else BlockId("dense", f"{region}.{part}")
            pages = expert_pages if region == EXPERTS and expert_pages else draw(st.integers(1, 4))
            here.append((block, region, pages))
        total, largest = sum(pages for _, _, pages in here), max((pages for _, _, pages in here), default=0)
        if region == STREAM:  # those of KEPT pass through it when they cannot be kept
            largest = max([largest, *(pages for _, other, pages in sizes if other == KEPT)])
            total = max(total, largest)
        low = total if region in (PINNED, KEPT) else largest
        capacity[region] = draw(st.one_of(st.just(low), st.integers(low, total))) * PAGE  # tight is where it hurts
        sizes += here
    if draw(st.booleans()):
        sizes = draw(st.permutations(sizes))
    second = draw(st.one_of(st.none(), st.integers(0, len(sizes))))
    drives = draw(st.one_of(st.just([]), st.lists(st.integers(0, 1), min_size=len(sizes), max_size=len(sizes))))
    homes, place = lay_out(sizes, second, drives), capacity[PINNED]
    for block, _, pages in draw(st.permutations([size for size in sizes if size[1] == KEPT])):
        homes[block] = replace(homes[block], place=place, streamable=draw(st.integers(0, 3)) > 0)
        place += pages * PAGE
    return World(
        homes,
        capacity,
        depth=draw(st.integers(1, 3)),
        read_limit=draw(st.integers(1, 8)) * PAGE,
        eviction=draw(st.sampled_from(sorted(EVICTION))),
    )


@dataclass
class StreamModel:
    """A compute thread: waits for one ticket at a time, gives its experts back before it asks again."""

    number: int
    running: bool = False
    ticket: int | None = None
    wants: set[BlockId] = field(default_factory=set)
    held: Counter[BlockId] = field(default_factory=Counter)
    expects: dict[BlockId, Purpose] = field(default_factory=dict)
    failed: bool = False

    def drop(self) -> None:
        self.ticket, self.wants = None, set()


class Watch:
    """Applies events to a planner and checks each action against what it knows about bytes and wishes."""

    def __init__(self, world: World, streams: int = 0) -> None:
        self.world, self.planner = world, world.planner()
        self.streams = {number: StreamModel(number) for number in (HOUSE, *range(1, streams + 1))}
        self.owner: dict[int, BlockId] = {}  # page of the arena to the block whose bytes it has
        self.slots: dict[BlockId, Slot] = {}
        self.ready: set[BlockId] = set()
        self.queue: list[BlockId] = []  # wanted, and no read of it under way; in the order asked for
        self.in_flight: dict[int, Read] = {}
        self.positions: dict[int, int] = {}
        self.tickets = 0
        self.now = 0.0
        self.limits = dict(world.capacity)
        self.touched: set[int] = set()  # pages of the arena behind which there is memory
        self.log: list[Action] = []
        starts, start = {}, 0
        for region in REGIONS:
            starts[region] = start
            start += world.capacity[region]
        self.starts = starts

    # --- what the model knows ---------------------------------------------------------------------------------------

    def region(self, block: BlockId) -> str:
        """Where the block is, or else where it belongs now."""
        home = self.world.homes[block]
        if block in self.slots:
            return self.slots[block].region
        if home.place is None or not home.streamable or home.place + home.extent.length <= self.end_of(home.region):
            return home.region
        return STREAM

    def end_of(self, region: str) -> int:
        return self.starts[region] + self.limits[region]

    def beyond(self, slot: Slot) -> bool:
        return slot.offset + slot.length > self.end_of(slot.region)

    def length(self, block: BlockId) -> int:
        return self.world.homes[block].extent.length

    def leased(self, block: BlockId) -> bool:
        return any(stream.held[block] for stream in self.streams.values())

    def loading(self) -> set[BlockId]:
        return {part.block for read in self.in_flight.values() for part in read.parts}

    def fits(self, block: BlockId, *, beyond: bool = False) -> bool:
        """Whether there is a gap for ``block`` once all that may go is gone; ``beyond``: or beyond the limit."""
        region = self.region(block)
        if region == KEPT or (beyond and self.world.homes[block].place is not None):
            return True
        stays = set(self.slots) & ({b for b in self.slots if self.leased(b) or region == PINNED} | self.loading())
        position, end = self.starts[region], self.starts[region] + self.world.capacity[region]
        end = end if beyond else self.end_of(region)
        for slot in sorted((self.slots[b] for b in stays if self.region(b) == region), key=lambda s: s.offset):
            if min(slot.offset, end) - position >= self.length(block):
                return True
            position = slot.offset + slot.length
        return end - position >= self.length(block)

    def drive(self, block: BlockId) -> int:
        return self.world.homes[block].drive

    def busy(self, drive: int) -> bool:
        reads = [read for read in self.in_flight.values() if self.drive(read.parts[0].block) == drive]
        return len(reads) >= self.world.depth

    def issuable(self) -> list[BlockId]:
        """The oldest unread wish of each region, if there is room for it; passing over those that only wait for their
        drive."""
        found = []
        for region in REGIONS:
            for block in self.queue:
                if self.region(block) == region and not self.fits(block):
                    break
                if self.region(block) == region and not self.busy(self.drive(block)):
                    found.append(block)
                    break
        return found

    def distance(self, block: BlockId) -> int:
        order = self.planner._cycle.order
        if block not in order:
            return len(order)
        ahead = []
        for position in self.positions.values() or (0,):
            steps = 0
            while order[(position + steps) % len(order)] != block:
                steps += 1
            ahead.append(steps)
        return min(ahead)

    # --- events -----------------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> list[Action]:
        self.now += 1
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
            assert dict(self.planner.residency.held(stream.number)) == {b: n for b, n in stream.held.items() if n}
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
            if any(part.slot.region == EXPERTS for part in read.parts):
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
            assert slot.offset + slot.length <= start + self.world.capacity[slot.region]
            assert (block in self.queue) == demand
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
        self.in_flight[read.read] = read

    def check_discard(self, discard: Discard) -> None:
        for page in range(discard.offset, discard.offset + discard.length, PAGE):
            if page in self.owner:
                self.vacate(self.owner[page])
            self.touched.discard(page)

    def reposition(self, before: Sequence[BlockId]) -> None:
        """The order has changed: each stream comes next to what it came next to, or to what follows that."""
        cycle = self.planner._cycle
        for stream, position in self.positions.items():
            rest = cycle._all[cycle._all.index(before[position]) :] if position < len(before) else ()
            self.positions[stream] = next((cycle.order.index(b) for b in rest if b in cycle.order), len(cycle.order))

    def vacate(self, block: BlockId) -> None:
        """``block``'s bytes go, if it has any."""
        slot = self.slots.pop(block, None)
        if slot is None:
            return
        assert not self.leased(block), f"{block} evicted under a lease"
        assert block not in self.loading(), f"{block} overwritten while it is read"
        self.ready.discard(block)
        for page in range(slot.offset, slot.offset + slot.length, PAGE):
            if self.owner.get(page) == block:
                del self.owner[page]

    def check_bytes(self, block: BlockId, slot: Slot) -> None:
        assert block in self.ready
        assert self.slots[block] == slot
        assert all(self.owner[page] == block for page in range(slot.offset, slot.offset + slot.length, PAGE))

    def check_grant(self, grant: Grant) -> None:
        (stream,) = (s for s in self.streams.values() if s.ticket == grant.ticket)
        stream.wants.remove(grant.block)
        stream.held[grant.block] += 1
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

    def forget(self, stream: StreamModel) -> None:
        wants = stream.wants
        stream.drop()
        wanted = set().union(*(s.wants for s in self.streams.values()))
        self.queue = [block for block in self.queue if block not in wants or block in wanted]

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

    def expect(self, stream: StreamModel, certain: tuple[BlockId, ...], guessed: tuple[BlockId, ...]) -> None:
        stream.expects = dict.fromkeys(guessed, Purpose.GUESS) | dict.fromkeys(certain, Purpose.CERTAIN)
        self.apply(Expect(stream.number, certain, guessed, 0.001))

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
                continue
            for stream in self.streams.values():
                experts = [b for b in stream.held if b.kind == "expert"]
                if stream.failed or (stream.ticket is None and stream.held):
                    self.end(stream)
                    break
                if experts:
                    self.release(stream, experts[0])
                    break
            else:
                break
        else:
            raise AssertionError("reads go on for ever though nobody asks")
        assert not any(stream.ticket is not None for stream in self.streams.values()), "left waiting"
        assert not self.planner._tickets
        assert not self.planner._queue
        assert not self.planner._waiting
