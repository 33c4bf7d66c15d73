"""A planner that is watched, in the place of one that a simulation drives: each action is checked."""

from collections.abc import Iterable, Mapping

from penstock.tiering.events import (
    Acquire,
    Action,
    Begin,
    Cancel,
    End,
    Event,
    Expect,
    ReadDone,
    ReadFailed,
    Release,
    Resize,
    Stream,
)
from penstock.tiering.planner.counters import Counters
from penstock.tiering.planner.regions import Home
from penstock.tiering.planner.residency import Residency
from penstock.tiering.policy.prefetch.speculation import Speculation
from penstock.tiering.units import BlockId
from tests.support.worlds.watch import Watch
from tests.support.worlds.worlds import World


class Watched(Watch):
    """As Planner. Every event goes through the ledger; time is the simulation's."""

    def __init__(self, world: World, streams: int) -> None:
        super().__init__(world, streams)
        self.events = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        """Have the ledger's streams and drives do what ``event`` says, at ``now``."""
        assert now >= self.now, "time runs backwards"
        self.now = now
        self.events += 1
        match event:
            case Begin():
                self.begin(self.streams[event.stream])
            case End():
                self.end(self.streams[event.stream])
            case Acquire():
                self.tickets = event.ticket - 1
                self.acquire(self.streams[event.stream], event.blocks)
            case Release():
                self.release(self.streams[event.stream], *event.blocks)
            case Expect():
                self.expect(self.streams[event.stream], event.certain, event.guessed, event.residuals)
            case Cancel():
                self.apply(event)
            case ReadDone():
                self.complete(event.read)
            case ReadFailed():
                self.fail(event.read)
            case Resize():
                self.resize(event.limits)
        return self.log

    def pass_time(self) -> None:
        """The simulation says what time it is."""

    # --- what else a simulation asks of a planner -------------------------------------------------------------------

    @property
    def homes(self) -> Mapping[BlockId, Home]:
        return self.planner.homes

    @property
    def residency(self) -> Residency:
        return self.planner.residency

    @property
    def counters(self) -> Counters:
        return self.planner.counters

    @property
    def speculation(self) -> Speculation:
        return self.planner.speculation

    @property
    def crowded(self) -> bool:
        return self.planner.crowded

    def hurries(self, stream: Stream, blocks: Iterable[BlockId]) -> bool:
        return self.planner.hurries(stream, blocks)
