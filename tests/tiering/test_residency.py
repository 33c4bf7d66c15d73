"""Residency against three dictionaries."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.tiering.residency import Residency
from penstock.tiering.units import PAGE, BlockId

BLOCKS = [BlockId("expert", "m", part) for part in range(6)]
STREAMS = (-1, 1, 2)
blocks, streams = st.sampled_from(BLOCKS), st.sampled_from(STREAMS)


class ResidencyMachine(RuleBasedStateMachine):
    @initialize(a=st.integers(0, 8), b=st.integers(0, 8))
    def build(self, a: int, b: int) -> None:
        self.capacity = {"a": a * PAGE, "b": b * PAGE}
        self.tier = Residency("host", self.capacity)
        self.state: dict[BlockId, str] = {}
        self.place: dict[BlockId, tuple[str, int, int]] = {}
        self.leases: Counter[tuple[int, BlockId]] = Counter()

    def leased(self, block: BlockId) -> bool:
        return any(self.leases[stream, block] for stream in STREAMS)

    @rule(block=blocks, region=st.sampled_from("ab"), pages=st.integers(1, 4))
    def reserve(self, block: BlockId, region: str, pages: int) -> None:
        if block in self.state:
            with pytest.raises(AssertionError):
                self.tier.reserve(block, region, pages * PAGE)
            return
        slot = self.tier.reserve(block, region, pages * PAGE)
        if slot is not None:
            assert (slot.region, slot.length) == (region, pages * PAGE)
            self.state[block], self.place[block] = "loading", tuple(slot)

    @rule(block=blocks)
    def land(self, block: BlockId) -> None:
        if self.state.get(block) == "loading":
            assert tuple(self.tier.arrive(block)) == self.place[block]
            self.state[block] = "ready"

    @rule(block=blocks)
    def abandon(self, block: BlockId) -> None:
        if self.state.get(block) == "loading":
            self.tier.abandon(block)
            del self.state[block], self.place[block]

    @rule(block=blocks)
    def evict(self, block: BlockId) -> None:
        if self.state.get(block) == "ready" and not self.leased(block):
            self.tier.evict(block)
            del self.state[block], self.place[block]
        else:
            with pytest.raises(AssertionError):
                self.tier.evict(block)

    @rule(block=blocks, stream=streams)
    def lease(self, block: BlockId, stream: int) -> None:
        if self.state.get(block) == "ready":
            self.tier.lease(block, stream)
            self.leases[stream, block] += 1
        else:
            with pytest.raises(AssertionError):
                self.tier.lease(block, stream)

    @rule(block=blocks, stream=streams)
    def release(self, block: BlockId, stream: int) -> None:
        if self.leases[stream, block]:
            self.tier.release(block, stream)
            self.leases[stream, block] -= 1
        else:
            with pytest.raises((AssertionError, KeyError)):
                self.tier.release(block, stream)

    @invariant()
    def same_as_the_model(self) -> None:
        self.tier.check_integrity()
        for block in BLOCKS:
            state = self.state.get(block, "absent")
            assert self.tier.absent(block) == (state == "absent")
            assert self.tier.loading(block) == (state == "loading")
            slot = self.tier.slot(block)
            assert (tuple(slot) if slot else None) == (self.place[block] if state == "ready" else None)
            assert self.tier.evictable(block) == (state == "ready" and not self.leased(block))
        for stream in STREAMS:
            held = {block: self.leases[stream, block] for block in BLOCKS if self.leases[stream, block]}
            assert dict(self.tier.held(stream)) == held
        for region in "ab":
            inside = [place for place in self.place.values() if place[0] == region]
            assert sum(length for _, _, length in inside) <= self.capacity[region]
            holders = {s for (s, b), n in self.leases.items() if n and self.place[b][0] == region}
            assert set(self.tier.holders(region)) == holders
        assert self.tier.used_bytes == sum(length for _, _, length in self.place.values())


TestResidency = ResidencyMachine.TestCase
TestResidency.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_integrity_sees_a_lost_lease() -> None:
    tier = Residency("host", {"a": PAGE})
    tier.reserve(BLOCKS[0], "a", PAGE)
    tier.arrive(BLOCKS[0])
    tier.lease(BLOCKS[0], 1)
    tier._held.clear()
    with pytest.raises(AssertionError):
        tier.check_integrity()


def test_integrity_sees_overlapping_slots() -> None:
    tier = Residency("host", {"a": 2 * PAGE})
    tier.reserve(BLOCKS[0], "a", PAGE)
    tier.reserve(BLOCKS[1], "a", PAGE)
    tier._slots[BLOCKS[1]] = tier._slots[BLOCKS[0]]
    with pytest.raises(AssertionError, match="overlap"):
        tier.check_integrity()
