"""The planner in random worlds under random events, and in the corners where it once went wrong."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.tiering.errors import ReadError, UnplaceableModule
from penstock.tiering.events import Acquire, Action, Discard, Grant, Read, Refuse
from penstock.tiering.limits import EXPERTS, KEPT, PINNED, STREAM
from penstock.tiering.units import PAGE, BlockId

from .watch import HOUSE, StreamModel, Watch, World, lay_out, worlds

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
        return sorted(block for block in stream.held if block.kind == "expert")
    return []


def free(stream: StreamModel) -> bool:
    return stream.ticket is None and not stream.failed


class PlannerMachine(RuleBasedStateMachine):
    @initialize(world=worlds(), streams=st.integers(1, 3))
    def build(self, world: World, streams: int) -> None:
        self.watch = Watch(world, streams)
        self.bad: frozenset[BlockId] = frozenset()
        self.dense = world.inside(STREAM) + world.inside(PINNED) + world.inside(KEPT)
        self.experts = world.inside(EXPERTS)
        pinned = tuple(world.inside(PINNED))
        if pinned:
            self.watch.acquire(self.watch.streams[HOUSE], pinned)

    def streams(self) -> list[StreamModel]:
        return [stream for stream in self.watch.streams.values() if stream.number != HOUSE]

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
            if block.kind == "expert" or n % 4 == 0:
                self.watch.release(stream, block)
        inside = self.watch.world.inside(STREAM)
        follow = inside[self.watch.positions.get(stream.number, 0) % len(inside)] if inside else self.dense[0]
        self.watch.acquire(stream, (follow if n % 3 == 0 else self.dense[n % len(self.dense)],))

    @some(free)
    def acquire_experts(self, stream: StreamModel, data: st.DataObject) -> None:
        if not self.experts:
            return
        for block in list(stream.held.elements()):
            if block.kind == "expert":
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
        self.watch.expect(stream, tuple(chosen[:certain]), tuple(chosen[certain:]))

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
        least = {KEPT: 0, STREAM: world.largest(STREAM, KEPT), EXPERTS: world.largest(EXPERTS)}
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


# --- single cases ---------------------------------------------------------------------------------------------------

D = [BlockId("dense", f"d{n}") for n in range(6)]
X = [BlockId("expert", "m", n) for n in range(6)]


def watch(
    *sizes: tuple[BlockId, int], stream: int = 0, experts: int = 0, depth: int = 2, limit: int = 8, streams: int = 2
) -> Watch:
    """Blocks and their pages, in the order they lie on flash; pages of the regions and of the longest read."""
    laid = [(block, EXPERTS if block in X else STREAM, pages) for block, pages in sizes]
    capacity = {PINNED: 0, KEPT: 0, STREAM: stream * PAGE, EXPERTS: experts * PAGE}
    return Watch(World(lay_out(laid), capacity, depth, limit * PAGE), streams)


def reads(actions: list[Action]) -> list[tuple[BlockId, ...]]:
    return [tuple(part.block for part in action.parts) for action in actions if isinstance(action, Read)]


def land_all(w: Watch) -> None:
    while w.in_flight:
        w.complete(min(w.in_flight))


def test_neighbours_are_read_at_once_up_to_the_limit() -> None:
    w = watch(*((x, 1) for x in X), experts=6, limit=3)
    assert reads(w.acquire(w.streams[1], tuple(X[:5]))) == [(X[0], X[1], X[2]), (X[3], X[4])]


def test_those_here_are_granted_first() -> None:
    w = watch((X[0], 1), (X[1], 1), experts=2)
    w.acquire(w.streams[1], (X[1],))
    land_all(w)
    actions = w.acquire(w.streams[2], (X[0], X[1]))
    assert [type(action) for action in actions] == [Grant, Read]
    w.run_out()


def test_prefetch_goes_ahead_and_over_the_token_boundary() -> None:
    w = watch(*((d, 1) for d in D[:4]), stream=2, limit=1)
    one = w.streams[1]
    w.begin(one)
    land_all(w)
    for block, ahead in ((D[2], [D[3]]), (D[3], [D[0]])):
        w.acquire(one, (block,))
        land_all(w)
        w.release(one, block)
        land_all(w)
        assert all(a in w.ready for a in ahead)
    w.run_out()


def test_prefetch_goes_on_whichever_block_of_a_release_made_room() -> None:
    w = watch((X[0], 1), (D[0], 1), (D[1], 1), stream=1, experts=1, limit=1)
    one = w.streams[1]
    w.begin(one)
    for block in (D[0], X[0]):
        w.acquire(one, (block,))
        land_all(w)
    assert reads(w.release(one, X[0], D[0])) == [(D[1],)]


def test_prefetch_brings_nothing_before_what_it_evicted_itself() -> None:
    """d1, d2, d3 go to make room for d0; what is left of it is not for d4, which is needed after them."""
    w = watch((D[0], 3), (D[1], 2), *((d, 1) for d in D[2:]), stream=4, limit=1)
    one = w.streams[1]
    w.begin(one)
    w.acquire(one, (D[1],))
    land_all(w)
    assert w.ready == {D[1], D[2], D[3]}
    w.end(one)
    assert reads(w.log) == [(D[0],)]


def test_what_fails_is_not_prefetched_until_it_is_asked_for() -> None:
    w = watch((D[0], 1), stream=1)
    w.begin(w.streams[1])
    assert list(w.in_flight) == [0]
    w.fail(0)
    assert not w.in_flight
    w.acquire(w.streams[1], (D[0],))
    land_all(w)
    assert w.streams[1].held == {D[0]: 1}
    w.run_out()


def test_a_failed_read_refuses_each_ticket_once() -> None:
    w = watch(*((x, 1) for x in X), experts=4)
    w.acquire(w.streams[1], (X[0], X[1]))
    w.acquire(w.streams[2], (X[1], X[3]))
    error = ReadError("injected")
    w.fail(0)
    assert isinstance(w.log[0], Refuse)
    assert [action.ticket for action in w.log if isinstance(action, Refuse)] == [1, 2]
    assert str(w.log[0].error) == str(error)
    w.run_out()


def test_a_full_region_does_not_hold_back_a_neighbour_for_another() -> None:
    """d1 and x0 are neighbours on flash and in the queue; stream 1 holds the room for d1 and waits for x0."""
    w = watch((D[0], 2), (D[1], 2), (X[0], 1), (X[1], 1), stream=2, experts=2, depth=1, streams=3)
    one, two, three = (w.streams[n] for n in (1, 2, 3))
    w.acquire(one, (D[0],))
    w.acquire(three, (X[1],))
    land_all(w)
    w.acquire(two, (D[1],))
    assert reads(w.acquire(one, (X[0],))) == [(X[0],)]
    land_all(w)
    w.run_out()
    assert not two.failed


def test_a_demand_that_fits_overtakes_when_all_else_is_stuck() -> None:
    """Stream 2 wants d2, too big beside d0, which stream 1 holds while it asks for d1, which fits."""
    w = watch((D[0], 1), (D[1], 1), (D[2], 3), stream=3, limit=1)
    one, two = w.streams[1], w.streams[2]
    w.acquire(one, (D[0],))
    land_all(w)
    w.acquire(two, (D[2],))
    w.acquire(one, (D[1],))
    land_all(w)
    assert one.held == {D[0]: 1, D[1]: 1}
    w.run_out()
    assert not two.failed


def test_of_two_who_block_each_other_one_is_refused() -> None:
    w = watch(*((d, 1) for d in D[:4]), stream=2, limit=1)
    one, two = w.streams[1], w.streams[2]
    w.acquire(one, (D[0],))
    w.acquire(two, (D[1],))
    land_all(w)
    w.acquire(one, (D[2],))
    actions = w.acquire(two, (D[3],))
    (refusal,) = (action for action in actions if isinstance(action, Refuse))
    assert refusal.ticket == 3
    assert "'d2'" in str(refusal.error)
    w.run_out()


def test_one_who_holds_nothing_is_not_refused_for_those_who_block_each_other() -> None:
    w = watch(*((d, 1) for d in D[:5]), stream=2, limit=1, streams=3)
    one, two, three = (w.streams[n] for n in (1, 2, 3))
    w.acquire(one, (D[0],))
    w.acquire(two, (D[1],))
    land_all(w)
    w.acquire(three, (D[4],))
    w.acquire(one, (D[2],))
    w.acquire(two, (D[3],))
    assert (one.failed, two.failed, three.failed) == (True, False, False)
    w.run_out()


def test_what_is_larger_than_its_region_is_refused() -> None:
    w = watch((X[0], 3), (D[0], 3), stream=2, experts=2)
    for block in (X[0], D[0]):
        (refusal,) = w.acquire(w.streams[1], (block,))
        assert isinstance(refusal, Refuse)
        assert isinstance(refusal.error, UnplaceableModule)
        w.end(w.streams[1])


def test_a_deadlock_over_two_regions_is_found() -> None:
    """Stream 1 keeps an expert while it waits for a dense block, stream 2 the other way round."""
    w = watch((D[0], 1), (D[1], 1), (X[0], 1), (X[1], 1), stream=1, experts=1, limit=1)
    one, two = w.streams[1], w.streams[2]
    w.acquire(one, (X[0],))
    w.acquire(two, (D[0],))
    land_all(w)
    w.acquire(one, (D[1],))
    w.acquire(two, (X[1],))
    assert one.failed or two.failed
    w.run_out()


def test_the_same_block_twice_in_one_wish_is_a_bug() -> None:
    w = watch((X[0], 1), experts=1)
    with pytest.raises(AssertionError):
        w.planner.handle(Acquire(1, 1, (X[0], X[0])), 0.0)


def test_counters() -> None:
    w = watch((X[0], 1), (X[1], 2), experts=2)
    one = w.streams[1]
    for block in (X[0], X[0], X[1]):
        w.acquire(one, (block,))
        land_all(w)
        w.release(one, block)
    counters = w.planner.counters
    assert (counters.expert_hits, counters.expert_misses, counters.evictions) == (1, 2, 1)
    assert (counters.reads, counters.demand_bytes, counters.prefetch_bytes) == (2, 3 * PAGE, 0)
    assert counters.busy_seconds == 2.0


# --- limits ---------------------------------------------------------------------------------------------------------


def discarded(actions: list[Action]) -> int:
    return sum(action.length for action in actions if isinstance(action, Discard))


def test_what_is_leased_goes_when_it_is_given_back() -> None:
    w = watch((X[0], 1), (X[1], 1), (X[2], 1), experts=3)
    one = w.streams[1]
    w.acquire(one, (X[0], X[1], X[2]))
    land_all(w)
    w.release(one, X[1])
    w.resize({EXPERTS: PAGE})
    assert discarded(w.log) == PAGE
    w.release(one, X[2])
    assert discarded(w.log) == PAGE
    w.release(one, X[0])
    assert discarded(w.log) == 0, "it lies below the limit"
    w.acquire(one, (X[0],))
    assert any(isinstance(action, Grant) for action in w.log)


def test_a_low_limit_refuses_nobody_who_fits_with_all_the_memory() -> None:
    w = watch((D[0], 1), (D[1], 1), stream=2)
    one = w.streams[1]
    w.resize({STREAM: PAGE})
    w.acquire(one, (D[0],))
    land_all(w)
    w.acquire(one, (D[1],))
    land_all(w)
    assert one.held.keys() == {D[0], D[1]}
    w.end(one)
    assert discarded(w.log) == PAGE


def kept_watch() -> Watch:
    """Two blocks with places of their own, and one page through which others pass."""
    homes = lay_out([(D[0], KEPT, 1), (D[1], KEPT, 1)])
    homes = {block: replace(home, place=n * PAGE) for n, (block, home) in enumerate(homes.items())}
    return Watch(World(homes, {PINNED: 0, KEPT: 2 * PAGE, STREAM: PAGE, EXPERTS: 0}, 1, PAGE), 1)


def test_a_kept_block_is_streamed_for_a_while_and_returns() -> None:
    w = kept_watch()
    one = w.streams[1]
    w.resize({STREAM: 0})
    land_all(w)
    assert {w.slots[block].region for block in D[:2]} == {KEPT}
    w.acquire(one, (D[1],))
    w.resize({KEPT: PAGE, STREAM: PAGE})
    assert discarded(w.log) == 0
    w.release(one, D[1])
    assert discarded(w.log) == PAGE
    land_all(w)
    assert w.slots[D[1]].region == STREAM
    w.resize({KEPT: 2 * PAGE, STREAM: 0})
    land_all(w)
    assert w.slots[D[1]].region == KEPT
    assert not w.planner._cycle.order, "there is nothing to read along the cycle any more"


def test_a_read_beyond_the_limit_lands_is_used_and_goes() -> None:
    w = watch((X[0], 1), (X[1], 1), experts=2, limit=1)
    one = w.streams[1]
    w.acquire(one, (X[0], X[1]))
    w.resize({EXPERTS: PAGE})
    land_all(w)
    assert one.held.keys() == {X[0], X[1]}
    w.end(one)
    assert len(w.slots) == 1


def test_a_read_beyond_the_limit_that_fails_leaves_no_memory_behind() -> None:
    w = watch((X[0], 1), (X[1], 1), experts=2, limit=1)
    w.acquire(w.streams[1], (X[0], X[1]))
    w.resize({EXPERTS: PAGE})
    number = next(n for n, read in w.in_flight.items() if w.beyond(read.parts[0].slot))
    w.fail(number)
    assert discarded(w.log) == PAGE
    w.run_out()
