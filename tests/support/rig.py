"""A bridge over tiny regions and a fake drive, and threads to use it."""

import threading
from collections.abc import Callable, Sequence

from penstock.runtime.tiers.bridge import Bridge
from penstock.tiering.events import Action, Event, Slot, Stream
from penstock.tiering.planner.planner import Planner
from penstock.tiering.planner.regions import EXPERTS, PINNED, STREAM, Home
from penstock.tiering.planner.residency import Residency
from penstock.tiering.policy.eviction import EVICTION
from penstock.tiering.policy.prefetch.cycle import Cycle
from penstock.tiering.units import PAGE, BlockId, Extent
from tests.support.fakes import FakeFlash, FakeMemory, pattern

SOON = 20.0
"""Seconds after which a test gives up on what should take no time."""

PINS = [BlockId("dense", f"norm.{n}") for n in range(2)]
DENSE = [BlockId("dense", f"layer.{n}") for n in range(6)]
EXPERT = [BlockId("expert", "mlp", n) for n in range(8)]
PAGES = dict(zip(PINS + DENSE + EXPERT, [1, 1, 1, 3, 2, 1, 3, 2] + [1] * 8, strict=True))


class HookedPlanner(Planner):
    """Calls ``hook`` with every event, before or after it is handled."""

    before: Callable[[Event], None] | None = None
    inside: Callable[[], object] | None = None
    """Called while blocks are given back without an event."""
    after: Callable[[Event], None] | None = None

    def handle(self, event: Event, now: float) -> list[Action]:
        if self.before is not None:
            self.before(event)
        actions = super().handle(event, now)
        if self.after is not None:
            self.after(event)
        return actions

    def give_back(self, stream: Stream, blocks: Sequence[BlockId]) -> bool:
        if self.inside is not None:
            self.inside()
        return super().give_back(stream, blocks)


class Rig:
    """A model's worth of blocks: 2 pinned, 6 streamed through 4 pages, 8 experts in a cache of 3 pages."""

    def __init__(self, *, depth: int = 2, stream: int = 4, experts: int = 3, eviction: str = "lru") -> None:
        homes, offset = {}, 0
        for block, pages in PAGES.items():
            region = EXPERTS if block in EXPERT else PINNED if block in PINS else STREAM
            homes[block] = Home(Extent(0, offset, pages * PAGE), region)
            offset += pages * PAGE
        self.residency = Residency("host", {PINNED: 2 * PAGE, STREAM: stream * PAGE, EXPERTS: experts * PAGE})
        self.planner = HookedPlanner(
            self.residency,
            homes,
            cycle=Cycle(DENSE),
            experts=EVICTION[eviction],
            depth=depth,
            read_limit=3 * PAGE,
        )
        self.flash, self.memory = FakeFlash(), FakeMemory(self.residency.capacity)
        self.bridge = Bridge(self.planner, self.flash, self.memory)

    def right(self, block: BlockId, slot: Slot) -> bool:
        return bytes(self.memory.view(slot.offset, slot.length)) == pattern(block, PAGES[block] * PAGE)

    def use(self, *blocks: BlockId) -> None:
        """Lease each block, look at it, give it back."""
        with self.bridge.acquire(blocks) as leases:
            for block, slot in leases:
                assert self.right(block, slot)
                self.bridge.release(block)

    def held(self) -> dict[BlockId, int]:
        return dict(self.residency.held(threading.get_ident()))


class Worker(threading.Thread):
    """Runs ``work`` and keeps what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error

    def result(self) -> BaseException | None:
        self.join(SOON)
        assert not self.is_alive(), "hangs"
        return self.error
