"""Policies against rankings by brute force."""

from contextlib import closing
from fractions import Fraction

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.tiering.policy.eviction import EVICTION, Eviction
from penstock.tiering.policy.eviction.lfu import LFU
from penstock.tiering.policy.eviction.lru import LRU
from penstock.tiering.policy.eviction.next_use import NextUse
from penstock.tiering.policy.eviction.windowed import WindowedLFU
from penstock.tiering.policy.prefetch.route import Route
from penstock.tiering.units import BlockId
from tests.support.rankings import BLOCKS, ranking

blocks = st.sampled_from(BLOCKS)


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
