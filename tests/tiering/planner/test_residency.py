"""Residency against three dictionaries."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.tiering.planner.residency import Residency
from penstock.tiering.units import PAGE, BlockId

BLOCKS = [BlockId("expert", "m", part) for part in range(6)]
STREAMS = (-1, 1, 2)
blocks, streams, numbers = st.sampled_from(BLOCKS), st.sampled_from(STREAMS), st.integers(0, 59)


class ResidencyMachine(RuleBasedStateMachine):
    @initialize(a=st.integers(3, 9), b=st.integers(0, 6))
    def build(self, a: int, b: int) -> None:
        self.capacity = {"a": a * PAGE, "b": b * PAGE}
        self.tier = Residency("host", self.capacity)
        self.limit = dict(self.capacity)
        self.state: dict[BlockId, str] = {}
        self.place: dict[BlockId, tuple[str, int, int]] = {}
        self.leases: Counter[tuple[int, BlockId]] = Counter()

    def leased(self, block: BlockId) -> bool:
        return any(self.leases[stream, block] for stream in STREAMS)

    @rule(block=blocks, region=st.sampled_from("ab"), pages=st.integers(1, 4))
    def reserve(self, block: BlockId, region: str, pages: int) -> None:
        if block in self.state:
            return
        slot = self.tier.reserve(block, region, pages * PAGE)
        if slot is not None:
            assert (slot.region, slot.length) == (region, pages * PAGE)
            assert slot.offset + slot.length <= self.end(region)
            self.state[block], self.place[block] = "loading", tuple(slot)

    def end(self, region: str) -> int:
        return (0 if region == "a" else self.capacity["a"]) + self.limit[region]

    @rule(
        block=blocks, region=st.sampled_from("ab"), pages=st.integers(1, 4), at=st.one_of(st.none(), st.integers(0, 14))
    )
    def reserve_beyond(self, block: BlockId, region: str, pages: int, at: int | None) -> None:
        """At a place of its own, if that is free; or wherever there is room, on either side of the limit."""
        if block in self.state:
            return
        if at is not None:
            spans = self.tier.regions[region].space.holes()
            if not any(start <= at * PAGE and (at + pages) * PAGE <= start + length for start, length in spans):
                return
        slot = self.tier.reserve(block, region, pages * PAGE, at=None if at is None else at * PAGE, beyond=True)
        if at is not None:
            assert slot == (region, at * PAGE, pages * PAGE)
        if slot is not None:
            self.state[block], self.place[block] = "loading", tuple(slot)

    @rule(region=st.sampled_from("ab"), pages=st.integers(0, 9))
    def resize(self, region: str, pages: int) -> None:
        limit = min(pages * PAGE, self.capacity[region])
        before = self.end(region)
        self.limit[region] = limit
        freed = {
            page for start, length in self.tier.resize(region, limit) for page in range(start, start + length, PAGE)
        }
        held = {page for _, start, length in self.place.values() for page in range(start, start + length, PAGE)}
        assert freed == set(range(self.end(region), before, PAGE)) - held

    def pick(self, state: str, n: int) -> BlockId:
        """One of the blocks in ``state``; "leased" and "idle" are kinds of ready."""
        fit = sorted(
            block
            for block, now in self.state.items()
            if now == state or (now == "ready" and state == ("leased" if self.leased(block) else "idle"))
        )
        return fit[n % len(fit)]

    @precondition(lambda self: "loading" in self.state.values())
    @rule(n=numbers)
    def arrive(self, n: int) -> None:
        block = self.pick("loading", n)
        assert tuple(self.tier.arrive(block)) == self.place[block]
        self.state[block] = "ready"

    @precondition(lambda self: "loading" in self.state.values())
    @rule(n=numbers)
    def abandon(self, n: int) -> None:
        block = self.pick("loading", n)
        self.tier.abandon(block)
        del self.state[block], self.place[block]

    @precondition(lambda self: any(self.state[b] == "ready" and not self.leased(b) for b in self.state))
    @rule(n=numbers)
    def evict(self, n: int) -> None:
        block = self.pick("idle", n)
        self.tier.evict(block)
        del self.state[block], self.place[block]

    @precondition(lambda self: "ready" in self.state.values())
    @rule(n=numbers, stream=streams)
    def lease(self, n: int, stream: int) -> None:
        block = self.pick("ready", n)
        self.tier.lease(block, stream)
        self.leases[stream, block] += 1

    @precondition(lambda self: any(self.leases.values()))
    @rule(n=numbers)
    def release(self, n: int) -> None:
        stream, block = sorted(self.leases.elements())[n % self.leases.total()]
        self.tier.release(block, stream)
        self.leases[stream, block] -= 1

    @rule(block=blocks, stream=streams)
    def what_is_not_allowed(self, block: BlockId, stream: int) -> None:
        if block in self.state:
            with pytest.raises(AssertionError):
                self.tier.reserve(block, "a", PAGE)
        if self.state.get(block) != "ready":
            with pytest.raises(AssertionError):
                self.tier.lease(block, stream)
        if self.state.get(block) != "ready" or self.leased(block):
            with pytest.raises(AssertionError):
                self.tier.evict(block)
        if not self.leases[stream, block]:
            with pytest.raises((AssertionError, KeyError)):
                self.tier.release(block, stream)

    @invariant()
    def same_as_the_model(self) -> None:
        self.tier.check_integrity()
        for block in BLOCKS:
            state = self.state.get(block, "absent")
            assert self.tier.absent(block) == (state == "absent")
            assert self.tier.loading(block) == (state == "loading")
            where = self.tier.where(block)
            assert (tuple(where) if where else None) == self.place.get(block)
            assert self.tier.beyond(block) == (
                where is not None and where.offset + where.length > self.end(where.region)
            )
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
TestResidency.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


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
