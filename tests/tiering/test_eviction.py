"""LRU and LFU against rankings by brute force; the cycle against a walk along it."""

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.tiering.policy.cycle import Cycle
from penstock.tiering.policy.eviction import EVICTION, Eviction
from penstock.tiering.policy.eviction.arc import ARC
from penstock.tiering.policy.eviction.auto import Auto
from penstock.tiering.policy.eviction.belady import Belady
from penstock.tiering.policy.eviction.lfu import LFU
from penstock.tiering.policy.eviction.lru import LRU
from penstock.tiering.policy.eviction.next_use import NextUse
from penstock.tiering.policy.eviction.shadow import Shadow
from penstock.tiering.policy.eviction.succinct import Rare, Succinct
from penstock.tiering.policy.eviction.windowed import WindowedLFU
from penstock.tiering.policy.route import Route
from penstock.tiering.units import BlockId

BLOCKS = [BlockId("expert", module, part) for module in "mlk" for part in range(2)]
A, B, C, D, E, F = (BlockId("dense", name) for name in "abcdef")
blocks = st.sampled_from(BLOCKS)


def ranking(policy: Eviction) -> list[BlockId]:
    with closing(policy.victims()) as victims:
        return list(victims)


class PolicyMachine(RuleBasedStateMachine):
    """What the planner does to a policy; ``expected`` ranks the residents from scratch."""

    policy: Eviction

    @initialize()
    def reset(self) -> None:
        self.resident: dict[BlockId, int] = {}  # block to the time it came or was last used
        self.uses: dict[BlockId, list[int]] = {block: [] for block in BLOCKS}
        self.time = self.ticks = 0

    def expected(self) -> list[BlockId]:
        raise NotImplementedError

    @rule(block=blocks)
    def use(self, block: BlockId) -> None:
        self.time += 1
        self.policy.used([block])
        self.uses[block].append(self.ticks)
        if block in self.resident:
            self.resident[block] = self.time

    @rule(block=blocks)
    def insert(self, block: BlockId) -> None:
        if block not in self.resident:
            self.time += 1
            self.resident[block] = self.time
            self.policy.inserted(block)

    def count(self, block: BlockId) -> Fraction:
        return sum((Fraction(1, 2) ** (self.ticks - time) for time in self.uses[block]), Fraction(0))

    @rule(leased=st.sets(blocks), count=st.integers(1, 3))
    def evict(self, leased: set[BlockId], count: int) -> None:
        """As the planner does: skip what is leased, evict while iterating, stop early."""
        expected = [block for block in self.expected() if block not in leased][:count]
        evicted = []
        with closing(self.policy.victims()) as victims:
            for block in victims:
                if block in leased:
                    continue
                self.policy.removed(block)
                evicted.append(block)
                if len(evicted) == count:
                    break
        assert evicted == expected
        for block in evicted:
            del self.resident[block]

    @rule()
    def tick(self) -> None:
        self.policy.tick()
        self.ticks += 1

    @rule()
    def rank(self) -> None:
        assert ranking(self.policy) == self.expected()
        assert ranking(self.policy) == self.expected(), "looking changes nothing"


class LRUMachine(PolicyMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = LRU()

    def expected(self) -> list[BlockId]:
        return sorted(self.resident, key=self.resident.__getitem__)


class CountingMachine(PolicyMachine):
    """Powers of two: floating point is exact here. Re-scales every fifth forward."""

    @initialize()
    def start(self) -> None:
        self.counts = self.policy._counts
        self.counts._LARGEST = 16.0

    @invariant()
    def heaps_stay_small(self) -> None:
        for least in getattr(self.policy, "_layers", {"all": getattr(self.policy, "_least", None)}).values():
            assert len(least._heap) <= 2 * len(BLOCKS)


class LFUMachine(CountingMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = LFU(decay=0.5)

    def expected(self) -> list[BlockId]:
        return sorted(self.resident, key=lambda block: (self.count(block), block))


class NextUseMachine(CountingMachine):
    def __init__(self) -> None:
        super().__init__()
        self.route = Route("mlk")
        self.policy = NextUse(self.route, decay=0.5)

    @rule(stream=st.integers(1, 3), module=st.sampled_from("mlk"))
    def walk(self, stream: int, module: str) -> None:
        if stream not in self.route.streams:
            self.route.begin(stream)
        elif module == "m":
            self.route.end(stream)
        else:
            self.route.reach(stream, module)

    def forwards_until(self, block: BlockId) -> float:
        """Expected, until the block is used: until its layer comes, and as often as it is passed over then."""
        most = float(sum(Fraction(1, 2) ** ticks for ticks in range(self.ticks + 1)))
        passed_over = max(0.0, most / max(float(self.count(block)), most * 1e-6) - 1)
        return self.route.ahead([block.module])[0] + passed_over / max(1, len(self.route.streams))

    def expected(self) -> list[BlockId]:
        return sorted(
            self.resident, key=lambda block: (-self.forwards_until(block), block.module, self.count(block), block)
        )


TestLRU = LRUMachine.TestCase
TestLFU = LFUMachine.TestCase
TestNextUse = NextUseMachine.TestCase
TestLRU.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLFU.settings = TestNextUse.settings = TestLRU.settings


@pytest.mark.parametrize("name", sorted(EVICTION))
def test_contract(name: str) -> None:
    policy = EVICTION[name](Route("mlk"))
    assert name in ("auto", policy.name)
    policy.used(BLOCKS[:1])  # not resident: remembered or not, but no error
    assert ranking(policy) == []
    policy.inserted(BLOCKS[0])
    policy.inserted(BLOCKS[1])
    policy.used(BLOCKS[:1])
    policy.tick()
    assert ranking(policy) == [BLOCKS[1], BLOCKS[0]]
    policy.removed(BLOCKS[1])
    assert ranking(policy) == [BLOCKS[0]]


def test_lfu_forgets_old_fame() -> None:
    policy = LFU(decay=0.5)
    policy.inserted(BLOCKS[0])
    policy.inserted(BLOCKS[1])
    for _ in range(5):
        policy.used([BLOCKS[0]])
    assert ranking(policy) == [BLOCKS[1], BLOCKS[0]]
    for _ in range(4):
        policy.tick()
    policy.used([BLOCKS[1]])
    assert ranking(policy) == [BLOCKS[0], BLOCKS[1]]


def test_lfu_counts_stay_finite_over_many_forwards() -> None:
    policy = LFU(decay=0.9)
    policy.inserted(BLOCKS[0])
    policy.inserted(BLOCKS[1])
    for forward in range(20_000):
        policy.tick()
        policy.used([BLOCKS[0]])
        if forward % 2:
            policy.used([BLOCKS[1]])
    assert all(0 < count < float("inf") for count in policy._counts._count.values())
    assert ranking(policy) == [BLOCKS[1], BLOCKS[0]]


def test_lfu_remembers_across_eviction() -> None:
    policy = LFU()
    for block in BLOCKS[:2]:
        policy.inserted(block)
    for _ in range(3):
        policy.used([BLOCKS[0]])
    policy.used([BLOCKS[1]])
    policy.removed(BLOCKS[0])
    policy.inserted(BLOCKS[0])
    assert ranking(policy) == [BLOCKS[1], BLOCKS[0]]


# --- the cycle ------------------------------------------------------------------------------------------------------


def forward(cycle: Cycle, stream: int, uses: list[BlockId]) -> None:
    cycle.begin(stream)
    for block in uses:
        cycle.advance(stream, block)
    cycle.end(stream)


def walk(order: tuple[BlockId, ...], position: int, block: BlockId) -> int:
    """Steps from ``position`` to ``block``, around the ring."""
    steps = 0
    while order[(position + steps) % len(order)] != block:
        steps += 1
    return steps


@given(st.integers(1, 6), st.dictionaries(st.integers(1, 3), st.integers(0, 5)))
def test_distance_and_upcoming(count: int, last: dict[int, int]) -> None:
    order = (A, B, C, D, E, F)[:count]
    cycle = Cycle(order)
    positions = []
    for stream, index in last.items():
        cycle.begin(stream)
        cycle.advance(stream, order[index % count])
        positions.append(index % count + 1)
    expected = {block: min(walk(order, position, block) for position in positions or [0]) for block in order}
    assert {block: cycle.distance(block) for block in order} == expected
    upcoming = list(cycle.upcoming())
    assert sorted(upcoming) == sorted(order)
    assert [expected[block] for block in upcoming] == sorted(expected.values())
    for block in order:
        cycle.inserted(block)
    assert [expected[block] for block in ranking(cycle)] == sorted(expected.values(), reverse=True)


def test_upcoming_goes_over_the_token_boundary() -> None:
    cycle = Cycle((A, B, C, D))
    assert list(cycle.upcoming()) == [A, B, C, D]
    cycle.begin(1)
    cycle.advance(1, C)
    assert list(cycle.upcoming()) == [D, A, B, C]
    cycle.advance(1, D)
    assert list(cycle.upcoming()) == [A, B, C, D]
    assert cycle.distance(D) == 3
    cycle.end(1)
    assert list(cycle.upcoming()) == [A, B, C, D]


def test_two_streams_are_served_in_turn() -> None:
    cycle = Cycle((A, B, C, D, E, F))
    cycle.begin(1)
    cycle.begin(2)
    cycle.advance(2, C)
    assert list(cycle.upcoming()) == [A, D, B, E, C, F]
    assert cycle.distance(C) == 2
    cycle.end(2)
    assert cycle.distance(C) == 2
    assert cycle.distance(D) == 3


def test_learns_the_order_of_a_full_forward() -> None:
    cycle = Cycle((A, B, C, D))
    forward(cycle, 1, [B, A, C, D])
    assert cycle.order == (B, A, C, D)
    assert [cycle.distance(block) for block in (B, A, C, D)] == [0, 1, 2, 3]


def test_keeps_the_order_when_a_forward_stops_early_or_skips() -> None:
    cycle = Cycle((A, B, C, D))
    forward(cycle, 1, [A, B])
    forward(cycle, 1, [A, C, D])
    forward(cycle, 1, [])
    assert cycle.order == (A, B, C, D)


def test_blocks_never_used_go_last_and_stay_known() -> None:
    cycle = Cycle((A, B, C, D))
    forward(cycle, 1, [D, B])
    assert cycle.order == (D, B, A, C)
    assert cycle.distance(C) == 3


def test_a_block_used_twice_counts_where_it_is_first() -> None:
    cycle = Cycle((A, B, C))
    forward(cycle, 1, [B, A, B, C])
    assert cycle.order == (B, A, C)


def test_does_not_reorder_under_another_stream() -> None:
    cycle = Cycle((A, B, C))
    cycle.begin(2)
    forward(cycle, 1, [C, B, A])
    assert cycle.order == (A, B, C)
    cycle.advance(2, A)
    assert cycle.distance(B) == 0


def test_uses_outside_of_a_forward_leave_no_position_behind() -> None:
    cycle = Cycle((A, B, C))
    cycle.advance(7, B)
    assert [cycle.distance(block) for block in (A, B, C)] == [0, 1, 2]
    forward(cycle, 1, [C, A, B])
    assert cycle.order == (C, A, B), "a stream that never began must not stop the others from learning"


def test_victims_survive_eviction_while_iterating() -> None:
    cycle = Cycle((A, B, C))
    for block in (A, B, C):
        cycle.inserted(block)
    with closing(cycle.victims()) as victims:
        for block in victims:
            cycle.removed(block)
    assert ranking(cycle) == []


def test_lru_ranks_many_and_survives_eviction_anywhere() -> None:
    many = [BlockId("expert", "m", part) for part in range(50)]
    policy = LRU()
    for block in many:
        policy.inserted(block)
    seen = []
    with closing(policy.victims()) as victims:
        for block in victims:
            seen.append(block)
            if block.part % 3 == 0:
                policy.removed(block)
    assert seen == many
    assert ranking(policy) == [block for block in many if block.part % 3]


def test_a_block_outside_of_the_order_goes_first() -> None:
    cycle = Cycle((A, B))
    for block in (A, B, C):
        cycle.inserted(block)
    assert ranking(cycle) == [C, B, A]
    assert cycle.distance(C) > cycle.distance(B)


def test_who_leaves_the_cycle_comes_back_to_its_place() -> None:
    cycle = Cycle((A, B, C, D, E, F))
    cycle.leave([B, C, F])
    assert cycle.order == (A, D, E)
    assert B not in cycle
    forward(cycle, 1, [E, D, A])
    assert cycle.order == (E, D, A)
    cycle.join([B, C, F])
    assert cycle.order == (E, F, D, A, B, C), "behind the block that each came after"


@given(st.integers(0, 6), st.sets(st.sampled_from((A, B, C, D, E, F))), st.sets(st.sampled_from((A, B, C, D, E, F))))
def test_a_stream_stays_where_it_is_when_blocks_leave_and_join(
    used: int, first: set[BlockId], second: set[BlockId]
) -> None:
    order = (A, B, C, D, E, F)
    cycle = Cycle(order)
    cycle.begin(1)
    for block in order[:used]:
        cycle.advance(1, block)
    cycle.leave(first)
    cycle.join(second)
    assert cycle.order == tuple(block for block in order if block not in first - second)
    ahead = [block for block in (*order[used:], *order[:used]) if block in cycle.order]
    if first.isdisjoint(order[used : used + 1]):
        assert list(cycle.upcoming()) == ahead


def test_a_block_that_leaves_in_the_middle_of_a_forward_is_not_learned() -> None:
    cycle = Cycle((A, B, C))
    cycle.begin(1)
    for block in (C, B):
        cycle.advance(1, block)
    cycle.leave([C])
    cycle.end(1)
    cycle.join([C])
    assert sorted(cycle.order) == [A, B, C]


# --- policies that are no ranking by one number -----------------------------------------------------------------------


class WindowedMachine(PolicyMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = WindowedLFU(window=3)

    @rule()
    def rank(self) -> None:
        def recent(block: BlockId) -> int:
            return sum(self.ticks - time < 3 for time in self.uses[block])

        found = ranking(self.policy)
        assert sorted(found) == sorted(self.resident)
        assert [recent(block) for block in found] == sorted(map(recent, found))

    @rule(leased=st.sets(blocks), count=st.integers(1, 3))
    def evict(self, leased: set[BlockId], count: int) -> None:
        for block in [block for block in ranking(self.policy) if block not in leased][:count]:
            self.policy.removed(block)
            del self.resident[block]


TestWindowed = WindowedMachine.TestCase
TestWindowed.settings = TestLRU.settings


def play(policy: Eviction, room: int, uses: str) -> str:
    """Which of ``uses``, letters in one layer each, are hits."""
    cache = Shadow(policy, room)
    return "".join(use for use in uses if not cache.use([BlockId("expert", use)]))


def test_arc_keeps_what_is_used_again_from_a_scan() -> None:
    assert play(ARC(), 3, "abab" + "uvwxyz" + "ab") == "ab" + "ab"
    assert play(LRU(), 3, "abab" + "uvwxyz" + "ab") == "ab"


def test_arc_lengthens_the_list_that_is_missed_in() -> None:
    policy = ARC()
    play(policy, 2, "aabb" + "cd" + "c")
    assert policy._target > 0
    play(policy, 2, "ab")
    assert policy._target == 0


def test_discards_go_first_and_the_rest_by_recency() -> None:
    class Vowels:
        def discard(self, block: BlockId) -> bool:
            return block.module in "aeiou"

        def tick(self, resident: int) -> None:
            """They stay vowels."""

    policy = Succinct(Vowels())
    for letter in "babeci":
        block = BlockId("expert", letter)
        policy.used([block])
        if letter not in {block.module for block in ranking(policy)}:
            policy.inserted(block)
    assert "".join(block.module for block in ranking(policy)) == "aeibc"


def test_rare_are_those_beyond_what_fits() -> None:
    rare = Rare(decay=0.5)
    for block in (A, A, A, A, B, B, B, C):
        rare.discard(block)
    rare.tick(resident=2)
    assert [rare.discard(block) for block in (A, B, D)] == [False, False, True]
    rare.tick(resident=9)
    assert not rare.discard(D), "everything fits"


def test_belady_hits_more_than_any_other_can() -> None:
    uses = "abcabdabeabfcdef" * 3
    best = len(play(Belady(BlockId("expert", use) for use in uses), 3, uses))
    for name, make in EVICTION.items():
        assert len(play(make(Route(uses)), 3, uses)) <= best, name
    assert best > len(play(LRU(), 3, uses))


def drive(policy: Eviction, room: int, forwards: int, seed: int, route: Route) -> float:
    """The hit ratio, after some forwards, of four layers of eight experts of which each uses two, some more often."""
    cache, choose, hits = Shadow(policy, room), random.Random(seed), 0
    for forward in range(forwards):
        policy.tick()
        route.begin(1)
        for layer in "abcd":
            route.reach(1, layer)
            wanted = [BlockId("expert", layer, part) for part in {min(7, int(choose.expovariate(0.4))) for _ in "12"}]
            absent = cache.use(wanted)
            if forward >= forwards // 3:
                hits += len(wanted) - len(absent)
        route.end(1)
    return hits / (forwards - forwards // 3)


class Inverted(NextUse):
    """Every prediction wrong."""

    def victims(self) -> Iterator[BlockId]:  # type: ignore[override]
        yield from reversed(list(super().victims()))


@pytest.mark.parametrize("room", [8, 12, 20])
def test_auto_follows_good_predictions_and_leaves_bad_ones(room: int) -> None:
    def run(make: Callable[[Route], Eviction]) -> tuple[float, Eviction]:
        route = Route("abcd")
        policy = make(route)
        return drive(policy, room, 300, 1, route), policy

    lru, _ = run(lambda route: LRU())
    good, _ = run(NextUse)
    bad, _ = run(Inverted)
    chosen, auto = run(lambda route: Auto([lambda: NextUse(route), LRU]))
    warned, wary = run(lambda route: Auto([lambda: Inverted(route), LRU]))
    assert good > lru > bad
    assert chosen == good
    assert auto.name == "next-use"
    assert warned >= 0.95 * lru
    assert wary.name == "lru"


def test_auto_needs_no_shadows_while_everything_fits() -> None:
    policy = Auto([LRU, LFU])
    for _ in range(3):
        policy.tick()
        policy.used(BLOCKS)
        for block in BLOCKS:
            if block not in policy._resident:
                policy.inserted(block)
    assert not policy._full
    assert not any(shadow._resident for shadow in policy._shadows)


def test_auto_bears_a_cache_that_guesses_filled_before_anything_was_used() -> None:
    policy = Auto([LRU, LFU])
    policy.inserted(BLOCKS[0])
    assert ranking(policy) == BLOCKS[:1]
    policy.tick()
    policy.used(BLOCKS[:1])
    assert ranking(policy) == BLOCKS[:1]
