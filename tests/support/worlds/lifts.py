"""Three tiers without a thread: two planners, one above the other, a relay between them, and all that goes wrong.

The tier above is watched as any other (``Watch``); its reads are copies out of the tier below, which keeps books of its
own here. Reads of the drive end in any order, copies in the order in which they were asked for, as they do on a device.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from penstock.tiering.errors import ReadError
from penstock.tiering.events import (
    COPY_STREAM,
    Acquire,
    Action,
    Event,
    Expect,
    Grant,
    Part,
    Read,
    ReadDone,
    ReadFailed,
    Refuse,
    Release,
    Slot,
)
from penstock.tiering.planner.relay import Copy, Landed, Relay, expected, order_of
from penstock.tiering.planner.setup import Setup
from penstock.tiering.units import PAGE, BlockId
from tests.support.worlds.ledger import StreamModel
from tests.support.worlds.watch import Watch
from tests.support.worlds.worlds import World


def pages(slot: Slot) -> range:
    return range(slot.offset, slot.offset + slot.length, PAGE)


class Above(Watch):
    """The tier that is computed on; ``started`` are the reads that it has just begun, ``bytes_in`` whose bytes lie in
    each page: None while they are being written."""

    def __init__(self, world: World, streams: int) -> None:
        super().__init__(world, streams)
        self.started: deque[Read] = deque()
        self.bytes_in: dict[int, BlockId | None] = {}

    def apply(self, event: Event) -> list[Action]:
        actions = super().apply(event)
        self.started += [action for action in actions if isinstance(action, Read)]
        return actions

    def check_grant(self, grant: Grant) -> None:
        super().check_grant(grant)
        assert {self.bytes_in[page] for page in pages(grant.slot)} == {grant.block}, (
            "granted, and other bytes are there"
        )

    def write(self, part: Part, content: BlockId | None) -> None:
        """A copy writes to the place of ``part``; ``content`` is whose bytes lie there then."""
        assert part.block in self.loading(), f"{part.block} is written where nothing is awaited any more"
        assert self.slots[part.block] == part.slot
        for page in pages(part.slot):
            assert self.owner[page] == part.block, f"{part.block} is written over {self.owner.get(page)}"
            self.bytes_in[page] = content


class Below:
    """The tier that is copied from, and its books: leases, bytes, and who waits."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.planner = setup, setup.planner()
        self.reads: dict[int, Read] = {}
        self.wants: dict[int, set[BlockId]] = {}
        self.leases: Counter[BlockId] = Counter()
        self.slots: dict[BlockId, Slot] = {}  # of what is leased
        self.bytes_in: dict[int, BlockId | None] = {}
        self.now = 0.0
        self._spans: dict[str, tuple[int, int]] = {}
        start = 0
        for region, capacity in setup.regions.items():
            self._spans[region] = start, start + capacity
            start += capacity

    def apply(self, event: Event) -> list[Grant | Refuse]:
        """Take ``event`` in; the answers."""
        self.now += 1
        match event:
            case Acquire():
                self.wants[event.ticket] = set(event.blocks)
            case Release():
                self.leases.subtract(event.blocks)
                self.leases += Counter()
            case ReadDone():
                for part in self.reads.pop(event.read).parts:
                    self.bytes_in |= dict.fromkeys(pages(part.slot), part.block)
            case ReadFailed():
                del self.reads[event.read]
        answers: list[Grant | Refuse] = []
        for action in self.planner.handle(event, self.now):
            match action:
                case Read():
                    self._read(action)
                case Grant():
                    self._grant(action)
                    answers.append(action)
                case Refuse():
                    del self.wants[action.ticket]
                    answers.append(action)
        self.check()
        return answers

    def check(self) -> None:
        assert dict(self.planner.residency.held(COPY_STREAM)) == dict(self.leases), "leased otherwise than granted"
        for block in self.leases:
            slot = self.slots[block]
            assert self.planner.residency.slot(block) == slot, f"{block} evicted below under a lease"
            assert {self.bytes_in[page] for page in pages(slot)} == {block}, f"{block} overwritten below under a lease"
        self.planner.check_integrity()

    def check_done(self) -> None:
        assert not self.wants, "left waiting below"
        assert not self.leases, "left leased below"
        assert not self.reads

    def _read(self, read: Read) -> None:
        self.reads[read.read] = read
        flying = Counter(self.setup.homes[other.parts[0].block].drive for other in self.reads.values())
        assert max(flying.values()) <= self.setup.depth
        for part in read.parts:
            start, end = self._spans[part.slot.region]
            assert start <= part.slot.offset, "outside of its region below"
            assert part.slot.offset + part.slot.length <= end, "outside of its region below"
            self.bytes_in |= dict.fromkeys(pages(part.slot))

    def _grant(self, grant: Grant) -> None:
        self.wants[grant.ticket].remove(grant.block)
        if not self.wants[grant.ticket]:
            del self.wants[grant.ticket]
        self.leases.update(grant.leased)
        self.slots |= zip(grant.leased, (grant.slot, *grant.residual_slots), strict=True)


class Fault(NamedTuple):
    """What fails: a block that cannot be read, or one copy or read in so many (0: none), by their number."""

    block: BlockId | None = None
    copies: int = 0
    reads: int = 0


class Tiers:
    """A ``world`` above ``setup``, with ``streams`` streams."""

    def __init__(self, world: World, setup: Setup, streams: int, fault: Fault) -> None:
        self.above, self.below = Above(world, streams), Below(setup)
        self.fault = fault
        self.relay = Relay(order_of(setup.homes))
        self.straight: dict[int, Read] = {}
        self.ends: deque[Copy | Sequence[Landed]] = deque()  # what the copies' thread comes to, in this order
        self.copied = self.failed = self.passed_by = 0
        """Copies until now; reads above that failed; reads past the tier below."""
        self._lifted: dict[int, int] = {}  # by ticket below, the read above
        self._tried = 0

    # --- what streams do that both tiers are told of ------------------------------------------------------------------

    def begin(self, stream: StreamModel) -> None:
        self.tell(self.relay.begin())
        self.above.begin(stream)
        self.settle()

    def expect(
        self,
        stream: StreamModel,
        certain: Sequence[BlockId],
        guessed: Sequence[BlockId],
        residuals: Sequence[BlockId],
    ) -> None:
        """As DeviceBridge.expect."""
        event = Expect(stream.number, tuple(certain), tuple(guessed), 0.0, tuple(residuals))
        below, above = expected(event, self.above.planner.residency.absent, self.below.planner.residency.absent)
        self.tell([below])
        self.above.expect(stream, above.certain, above.guessed, above.residuals)
        self.settle()

    def settle(self) -> None:
        """Hand the reads on that the tier above has begun."""
        while self.above.started:
            read = self.above.started.popleft()
            for part in read.parts:
                self.above.write(part, None)  # a copy may begin at any time from now on
            if read.parts[0].block in self.below.setup.homes:
                self._tried += 1
                self._lifted[self._tried] = read.read
                self.tell(self.relay.start(self._tried, read.parts))
            else:
                self.straight[read.read] = read

    def tell(self, events: Sequence[Event]) -> None:
        """Have the tier below take ``events`` in, and its answers go where they go."""
        for event in events:
            for answer in self.below.apply(event):
                if isinstance(answer, Grant):
                    self.ends.append(self.relay.granted(answer))
                else:
                    assert isinstance(answer.error, ReadError), f"refused below, and nothing is wrong: {answer.error}"
                    self.ends.append(self.relay.refused(answer))

    # --- what devices do ----------------------------------------------------------------------------------------------

    @property
    def pending(self) -> list[tuple[str, int]]:
        """What may end next: reads below, reads past it, and the first of the copies."""
        found = [("read", number) for number in self.below.reads] + [("straight", number) for number in self.straight]
        return found + [("copy", 0)] * bool(self.ends)

    def land(self, kind: str, number: int) -> None:
        """One of these ends."""
        if kind == "read":
            self.tell([self._ended(number)])
        elif kind == "straight":
            (part,) = self.straight.pop(number).parts
            broken = part.block == self.fault.block
            self.passed_by += 1
            if not broken:
                self.above.write(part, part.block)
            (self.above.fail if broken else self.above.complete)(number)
        else:
            self._copy_ends(self.ends.popleft())
        self.settle()

    def run_out(self) -> None:
        """Nothing new is asked for. Everybody must get what he waits for, or be told that he does not."""
        for _ in range(3000):
            if pending := self.pending:
                self.land(*pending[0])
            elif self.above.let_go():
                self.settle()
            else:
                break
        else:
            raise AssertionError("reads go on for ever though nobody asks")
        assert not self.above.in_flight, "a read above never lands"
        self.below.check_done()
        self.above.check_done()

    def _ended(self, number: int) -> ReadDone | ReadFailed:
        parts = self.below.reads[number].parts
        if any(part.block == self.fault.block for part in parts) or self._fails(number, self.fault.reads):
            return ReadFailed(number, ReadError("injected"))
        return ReadDone(number)

    def _copy_ends(self, end: Copy | Sequence[Landed]) -> None:
        if not isinstance(end, Copy):
            self._land(end)
            return
        self.copied += 1
        failed = self._fails(self.copied, self.fault.copies)
        if not failed:
            found = {self.below.bytes_in[page] for page in pages(end.source)}
            assert found == {end.part.block}, f"{end.part.block} was to be copied, {found} was there"
            self.above.write(end.part, end.part.block)
        release, landed = self.relay.copied(end, ReadError("injected") if failed else None)
        self.tell([release])
        self._land(landed)

    def _land(self, landed: Sequence[Landed]) -> None:
        for end in landed:
            number = self._lifted.pop(end.ticket)
            self.failed += end.error is not None
            (self.above.complete if end.error is None else self.above.fail)(number)

    @staticmethod
    def _fails(number: int, one_in: int) -> bool:
        return one_in > 0 and number % one_in == one_in - 1
