"""SRP and SCH against brute force over all groups and caches, and on routing of which they are known."""

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from penstock.runtime.routing.suitability import (
    Routing,
    balance,
    knee,
    pairs_by_frequency,
    segment_cache,
    segment_routing,
    segment_routing_of_size,
    used,
)
from penstock.runtime.routing.suitability_report import report
from tests.support.routes import made_up

Uses = np.ndarray

small = arrays.arrays(np.bool_, st.tuples(st.integers(2, 5), st.integers(1, 3)))
segments = st.integers(1, 3)


def windows(uses: Uses, sequences: tuple[int, ...], segment: int) -> list[Uses]:
    ends = np.cumsum(sequences).tolist()
    return [
        uses[start : start + segment]
        for end, length in zip(ends, sequences, strict=True)
        for start in range(end - length, end - segment + 1)
    ]


def groups(experts: int) -> list[tuple[int, ...]]:
    return [group for size in range(experts + 1) for group in combinations(range(experts), size)]


def f1(found: list[Uses], chosen: tuple[tuple[int, ...], ...], segment: int) -> float:
    hits = sum(int(window[:, list(group)].sum()) for window, group in zip(found, chosen, strict=True))
    total = sum(int(window.sum()) for window in found)
    return 2 * hits / max(segment * sum(map(len, chosen)) + total, 1)


def routing_of(uses: Uses, segment: int) -> Routing:
    """SRP where all tokens are one sequence."""
    pairs = pairs_by_frequency(uses, (len(uses),), segment)
    assert pairs is not None
    return segment_routing(pairs)


def cut(uses: Uses) -> tuple[int, ...]:
    """Two sequences of the tokens."""
    return (len(uses) // 2, len(uses) - len(uses) // 2)


@settings(max_examples=40, deadline=None)
@given(small, segments)
def test_srp_is_the_best_of_all_groups(uses: Uses, segment: int) -> None:
    found = windows(uses, cut(uses), segment)
    pairs = pairs_by_frequency(uses, cut(uses), segment)
    if not found:
        assert pairs is None
        return
    assert pairs is not None
    got = segment_routing(pairs)
    possible = product(groups(uses.shape[1]), repeat=len(found))
    assert got.f1 == pytest.approx(max(f1(found, chosen, segment) for chosen in possible))


@settings(max_examples=40, deadline=None)
@given(small, segments, st.integers(0, 6))
def test_srp_of_a_size_is_the_best_of_all_groups_of_that_size(uses: Uses, segment: int, total: int) -> None:
    """``total`` experts over all segments."""
    found = windows(uses, cut(uses), segment)
    if not found or total > len(found) * uses.shape[1]:
        return
    pairs = pairs_by_frequency(uses, cut(uses), segment)
    assert pairs is not None
    got = segment_routing_of_size(pairs, total / len(found) / uses.shape[1])
    possible = product(groups(uses.shape[1]), repeat=len(found))
    best = max(f1(found, chosen, segment) for chosen in possible if sum(map(len, chosen)) == total)
    assert got.f1 == pytest.approx(best)
    assert got.f1 <= segment_routing(pairs).f1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(small, segments)
def test_sch_is_the_best_of_all_caches(uses: Uses, segment: int) -> None:
    found = windows(uses, cut(uses), segment)
    got = segment_cache(uses, cut(uses), segment)
    if not found:
        assert got is None
        return
    assert got is not None
    total = sum(int(window.sum()) for window in found)
    for size in range(1, uses.shape[1] + 1):
        caches = list(combinations(range(uses.shape[1]), size))
        hits = sum(max(int(window[:, list(cache)].sum()) for cache in caches) for window in found)
        assert got[size - 1] == pytest.approx(hits / total if total else 0)


def test_what_is_seldom_used_is_better_not_predicted() -> None:
    uses = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1]], dtype=np.bool_)
    routing = routing_of(uses, 3)
    assert (routing.f1, routing.recall, routing.size_ratio) == (pytest.approx(6 / 8), 3 / 5, 3 / 5)


@pytest.mark.parametrize("segment", [1, 4, 16])
def test_constant_routing_suits_perfectly(segment: int) -> None:
    uses = np.zeros((50, 8), dtype=np.bool_)
    uses[:, [2, 5]] = True
    routing = routing_of(uses, segment)
    assert (routing.f1, routing.recall, routing.size_ratio) == (1, 1, 1)
    curve = segment_cache(uses, (50,), segment)
    assert curve is not None
    np.testing.assert_allclose(curve, [0.5, 1, 1, 1, 1, 1, 1, 1])
    assert knee(curve) == 2


def test_random_routing_is_as_chance_has_it() -> None:
    """A token uses 2 of 8 experts; over a segment of 2, one both, two both, or four one each."""
    routes = made_up(40_000, layers=1, experts=8, top_k=2)
    uses = used(routes.layers)
    curve = segment_cache(uses, routes.sequences, 2)
    assert curve is not None
    both = 1 / comb(8, 2)
    one = 2 * 6 / comb(8, 2)
    assert curve[0] == pytest.approx((2 * (both + one) + (1 - both - one)) / 4, abs=0.005)
    assert curve[1] == pytest.approx((4 * both + 3 * one + 2 * (1 - both - one)) / 4, abs=0.005)
    long = segment_cache(uses, routes.sequences, 4096)
    assert long is not None
    np.testing.assert_allclose(long, np.arange(1, 9) / 8, atol=0.02)
    everything = routing_of(uses, 4096)
    assert everything.f1 == pytest.approx(2 * 0.25 / 1.25, abs=0.02), "to predict all experts is best"
    assert everything.size_ratio == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(
    ("curve", "size"), [([0.4, 0.7, 0.8, 1.0], 2), ([0.25, 0.5, 0.75, 1.0], 1), ([1.0], 1), ([0.3, 0.6, 0.9, 1.0], 3)]
)
def test_the_knee_is_where_an_expert_adds_less_than_its_share(curve: list[float], size: int) -> None:
    assert knee(np.array(curve)) == size


def test_balance() -> None:
    even = np.eye(4, dtype=np.bool_)
    assert balance(even).entropy == pytest.approx(1)
    assert balance(even).largest == 0.25
    assert balance(even[[0, 0, 0]]).entropy == 0
    half = balance(even[[0, 1]])
    assert (half.entropy, half.largest) == (pytest.approx(0.5), 0.5)


# --- the report ---


def test_the_report_says_what_the_measures_say() -> None:
    routes = made_up(96, layers=3, experts=16, top_k=4, sequences=(64, 32))
    found = report(routes)
    uses = used(routes.layers)
    assert (found["tokens"], found["sequences"], found["layers"]) == (96, 2, 3)
    assert (found["experts"], found["experts_per_token"], found["top_k"], found["experts_per_layer"]) == (48, 12, 4, 16)
    assert list(found["segment_routing"]) == [1, 4, 16, 64], "no sequence has 256 tokens"
    assert [row["experts"] for row in found["cache"]] == [6, 12, 18, 24, 30, 36, 42, 48]
    for row in found["cache"]:
        curve = segment_cache(uses, routes.sequences, 16)
        assert row["segment_cache"][16] == curve[row["experts"] - 1]
        assert ("lru" in row) == ("lfu" in row) == (row["share"] in (0.125, 0.25, 0.5))
    assert found["cache"][-1]["segment_cache"] == {1: 1, 4: 1, 16: 1, 64: 1}
    for layer, each in zip(routes.layers, found["by_layer"], strict=True):
        assert each["segment_routing"][16] == segment_routing(pairs_by_frequency(layer.used(), routes.sequences, 16)).f1
        assert each["segment_cache"][0.5][16] == segment_cache(layer.used(), routes.sequences, 16)[7]


def test_a_short_text_has_no_knee() -> None:
    found = report(made_up(8))
    assert found["knee"] is None
    assert list(found["segment_routing"]) == [1, 4]
