"""The planner in random worlds under random events."""

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.tiering.events import PINNING_STREAM
from penstock.tiering.planner.regions import EXPERTS, KEPT, PINNED, RESIDUALS, STREAM
from penstock.tiering.units import PAGE, BlockId
from tests.support.worlds.ledger import StreamModel
from tests.support.worlds.watch import Watch
from tests.support.worlds.worlds import World, worlds

numbers = st.integers(0, 59)


def some(fit: Callable[[StreamModel], bool]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule for a stream, number ``n`` of those that ``fit``; not chosen when there is none."""

    def mark(act: Callable[..., None]) -> Callable[..., None]:
        def step(self: "PlannerMachine", n: int, data: st.DataObject) -> None:
            fitting = [stream for stream in self.streams() if fit(stream)]
            act(self, fitting[n % len(fitting)], data)

        step.__name__ = act.__name__
        return precondition(lambda self: any(map(fit, self.streams())))(rule(n=numbers, data=st.data())(step))

    return mark


def usable(stream: StreamModel) -> list[BlockId]:
    """What the stream may give back: one that waits for experts uses those it has got, one that waits for a dense
    block stands still."""
    if stream.ticket is None:
        return sorted(stream.held)
    if all(block.kind == "expert" for block in stream.wants):
        return sorted(block for block in stream.held if block.kind != "dense")
    return []


def free(stream: StreamModel) -> bool:
    return stream.ticket is None and not stream.failed


class PlannerMachine(RuleBasedStateMachine):
    @initialize(world=worlds(), streams=st.integers(1, 3))
    def build(self, world: World, streams: int) -> None:
        self.watch = Watch(world, streams)
        self.bad: frozenset[BlockId] = frozenset()
        self.dense = world.inside(STREAM) + world.inside(PINNED) + world.inside(KEPT)
        self.experts, self.residuals = world.inside(EXPERTS), world.inside(RESIDUALS)
        pinned = tuple(world.inside(PINNED))
        if pinned:
            self.watch.acquire(self.watch.streams[PINNING_STREAM], pinned)

    def streams(self) -> list[StreamModel]:
        return [stream for stream in self.watch.streams.values() if stream.number != PINNING_STREAM]

    @some(lambda stream: free(stream) and not stream.running and not stream.held)
    def begin(self, stream: StreamModel, data: st.DataObject) -> None:
        self.watch.begin(stream)

    @some(lambda stream: stream.running or stream.failed)
    def end(self, stream: StreamModel, data: st.DataObject) -> None:
        if stream.failed or data.draw(numbers) % 4 == 0:
            self.watch.end(stream)

    @some(free)
    def acquire_dense(self, stream: StreamModel, data: st.DataObject) -> None:
        """The next block or any other one; what is held of earlier ones may be kept."""
        if not self.dense:
            return
        n = data.draw(numbers)
        for block in list(stream.held.elements()):
            if block.kind != "dense" or n % 4 == 0:
                self.watch.release(stream, block)
        inside = self.watch.world.inside(STREAM)
        follow = inside[self.watch.positions.get(stream.number, 0) % len(inside)] if inside else self.dense[0]
        self.watch.acquire(stream, (follow if n % 3 == 0 else self.dense[n % len(self.dense)],))

    @some(free)
    def acquire_experts(self, stream: StreamModel, data: st.DataObject) -> None:
        if not self.experts:
            return
        for block in list(stream.held.elements()):
            if block.kind != "dense":
                self.watch.release(stream, block)
        chosen = data.draw(st.lists(st.sampled_from(self.experts), min_size=1, unique=True))
        self.watch.acquire(stream, tuple(chosen))

    @some(lambda stream: stream.running)
    def expect(self, stream: StreamModel, data: st.DataObject) -> None:
        """Some experts in any order, right or wrong."""
        if not self.experts:
            return
        chosen = data.draw(st.lists(st.sampled_from(self.experts), unique=True))
        certain = data.draw(st.integers(0, len(chosen)))
        residuals = data.draw(st.lists(st.sampled_from(self.residuals), unique=True)) if self.residuals else []
        self.watch.expect(stream, tuple(chosen[:certain]), tuple(chosen[certain:]), tuple(residuals))

    @some(lambda stream: bool(usable(stream)))
    def release(self, stream: StreamModel, data: st.DataObject) -> None:
        held = usable(stream)
        self.watch.release(stream, held[data.draw(numbers) % len(held)])

    @some(lambda stream: stream.ticket is not None)
    def cancel(self, stream: StreamModel, data: st.DataObject) -> None:
        if data.draw(numbers) % 4 == 0:
            self.watch.cancel(stream)

    @rule(data=st.data())
    def resize(self, data: st.DataObject) -> None:
        """Some limits move: up, down, or to where it hurts."""
        world = self.watch.world
        least = {KEPT: 0, STREAM: world.largest(STREAM, KEPT), EXPERTS: world.largest(EXPERTS), RESIDUALS: 0}
        limits = {}
        for region in data.draw(st.lists(st.sampled_from(sorted(least)), unique=True)):
            low, high = least[region] // PAGE, world.capacity[region] // PAGE
            limits[region] = data.draw(st.one_of(st.sampled_from([low, high]), st.integers(low, high))) * PAGE
        self.watch.resize(limits)

    @precondition(lambda self: self.watch.in_flight)
    @rule(n=numbers)
    def land(self, n: int) -> None:
        number = sorted(self.watch.in_flight)[n % len(self.watch.in_flight)]
        if n % 10 == 9:
            self.watch.fail(number)
        else:
            self.watch.complete(number)

    @precondition(lambda self: self.watch.world.homes and not self.bad)
    @rule(n=numbers)
    def damage(self, n: int) -> None:
        """A block that can never be read, for the time when nothing new is asked for."""
        if n % 4 == 0:
            self.bad = frozenset({sorted(self.watch.world.homes)[n // 4 % len(self.watch.world.homes)]})

    @invariant()
    def leases_keep_their_bytes(self) -> None:
        for stream in self.watch.streams.values():
            for block in stream.held:
                self.watch.check_bytes(block, self.watch.slots[block])

    def teardown(self) -> None:
        if hasattr(self, "watch"):
            self.watch.run_out(self.bad)


TestPlanner = PlannerMachine.TestCase
TestPlanner.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
