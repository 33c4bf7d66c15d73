"""Weights and KV share a limit: no byte more than it, no part below its floor, none changed for the other's sake."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.placement.memory_split import MemoryShare, least_kv, split_limit

PARTS = st.builds(lambda floor, more: MemoryShare(floor, floor + more), st.integers(0, 50), st.integers(0, 100))


@given(PARTS, PARTS, st.integers(0, 200), st.floats(0, 1))
def test_a_limit_is_dealt_out_as_a_whole(weights: MemoryShare, kv: MemoryShare, wanted: int, share: float) -> None:
    floor, ceiling = weights.floor + kv.floor, weights.ceiling + kv.ceiling
    limits = [floor, floor + int(share * (ceiling - floor)), ceiling]
    found = [split_limit(limit, weights, kv, wanted=wanted) for limit in limits]
    for limit, (one, other) in zip(limits, found, strict=True):
        assert one + other == limit
        assert weights.floor <= one <= weights.ceiling
        assert kv.floor <= other <= kv.ceiling
    assert sorted(found) == found
    assert [other for _, other in found] == sorted(other for _, other in found)
    assert found[-1] == (weights.ceiling, kv.ceiling)


def test_room_that_no_page_wants_goes_first() -> None:
    weights, kv = MemoryShare(20, 100), MemoryShare(10, 50)
    assert split_limit(130, weights, kv, wanted=0) == (100, 30)
    assert split_limit(130, weights, kv, wanted=30) == (100, 30)
    assert split_limit(130, weights, kv, wanted=50) == (87, 43), "both give a sixth of what they can give"
    assert split_limit(110, weights, kv, wanted=0) == (100, 10)
    assert split_limit(60, weights, kv, wanted=0) == (50, 10)


def test_the_least() -> None:
    assert least_kv(1 << 30, 10 << 20, 32 << 20) == 52 << 20
    assert least_kv(4 << 20, 1 << 20, 32 << 20) == 3 << 20
    assert least_kv(4 << 20, 4 << 20, 32 << 20) == 4 << 20
