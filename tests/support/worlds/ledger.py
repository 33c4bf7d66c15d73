"""What is known of a planner's world from its events and actions alone: which bytes belong to whom, who waits, who
holds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.tiering.events import PINNING_STREAM, Purpose, Read, Slot
from penstock.tiering.planner.regions import EXPERTS, KEPT, PINNED, RESIDUALS, STREAM
from penstock.tiering.policy.prefetch.refinement import MOST_READ
from penstock.tiering.units import PAGE, BlockId, residuals
from tests.support.worlds.worlds import REGIONS, World


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


class Ledger:
    """Keeps account, and may be asked; who writes into it is ``Watch``."""

    def __init__(self, world: World, streams: int) -> None:
        self.world, self.planner = world, world.planner()
        self.streams = {number: StreamModel(number) for number in (PINNING_STREAM, *range(1, streams + 1))}
        self.owner: dict[int, BlockId] = {}  # page of the arena to the block whose bytes it has
        self.slots: dict[BlockId, Slot] = {}
        self.ready: set[BlockId] = set()
        self.queue: list[BlockId] = []  # wanted, and no read of it under way; in the order asked for
        self.in_flight: dict[int, Read] = {}
        self.positions: dict[int, int] = {}
        self.limits = dict(world.capacity)
        self.touched: set[int] = set()  # pages of the arena behind which there is memory
        self.residuals = residuals(world.homes)
        self.read_bytes = Counter[str]()  # by region
        starts, start = {}, 0
        for region in REGIONS:
            starts[region] = start
            start += world.capacity[region]
        self.starts = starts

    # --- what it knows ----------------------------------------------------------------------------------------------

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

    # --- entries ----------------------------------------------------------------------------------------------------

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

    def account(self, read: Read) -> None:
        """Bytes that are read: of experts and residuals together never more than a share of what reading each expert
        with its residuals would have taken, as long as there is no room for all."""
        total = Counter[str]()
        for home in self.world.homes.values():
            total[home.region] += home.extent.length
        if all(self.limits[region] >= total[region] for region in (EXPERTS, RESIDUALS)):
            return
        for part in read.parts:
            self.read_bytes[part.slot.region] += part.extent.length
        bound = max(0.0, MOST_READ * (total[EXPERTS] + total[RESIDUALS]) / max(1, total[EXPERTS]) - 1)
        assert self.read_bytes[RESIDUALS] <= bound * self.read_bytes[EXPERTS] + 1e-6, "more residuals than allowed"

    def forget(self, stream: StreamModel) -> None:
        wants = stream.wants
        stream.drop()
        wanted = set().union(*(s.wants for s in self.streams.values()))
        self.queue = [block for block in self.queue if block not in wants or block in wanted]

    def reposition(self, before: Sequence[BlockId]) -> None:
        """The order has changed: each stream comes next to what it came next to, or to what follows that."""
        cycle = self.planner._cycle
        for stream, position in self.positions.items():
            rest = cycle._all[cycle._all.index(before[position]) :] if position < len(before) else ()
            self.positions[stream] = next((cycle.order.index(b) for b in rest if b in cycle.order), len(cycle.order))
