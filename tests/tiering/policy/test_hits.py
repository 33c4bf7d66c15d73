"""Hit ratios under eviction policies, against a walk by hand and against what must hold of every policy."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.eviction import EVICTION
from penstock.tiering.policy.eviction.lru import LRU
from penstock.tiering.policy.hits import hit_ratio
from penstock.tiering.policy.prefetch.route import Route
from penstock.tiering.units import BlockId


def block(number: int, layer: int = 0) -> BlockId:
    return BlockId("expert", f"layers.{layer}", number)


def steps(*tokens: list[list[int]]) -> list[list[tuple[BlockId, ...]]]:
    """For each token, for each layer, experts by number."""
    return [[tuple(block(n, layer) for n in numbers) for layer, numbers in enumerate(token)] for token in tokens]


def test_lru_by_hand() -> None:
    # 0 and 1 miss; 0 hits; 2 takes the place of 1; 1 misses, takes that of 0; 2 hits.
    assert hit_ratio(EVICTION["lru"], 2, steps([[0, 1]], [[0]], [[2]], [[1]], [[2]])) == pytest.approx(2 / 6)


def test_one_cache_for_all_layers() -> None:
    assert hit_ratio(EVICTION["lru"], 2, steps([[0], [0]], [[0], [0]])) == 0.5
    assert hit_ratio(EVICTION["lru"], 1, steps([[0], [0]], [[0], [0]])) == 0


def test_what_a_layer_asks_for_does_not_go_for_its_sake() -> None:
    # 0 is the least recently used when 2 comes, but in use.
    assert hit_ratio(EVICTION["lru"], 2, steps([[0]], [[1]], [[0, 2]], [[0]])) == pytest.approx(2 / 5)


def test_what_finds_no_room_is_not_kept() -> None:
    assert hit_ratio(EVICTION["lru"], 1, steps([[0, 1]], [[0]], [[1]])) == pytest.approx(1 / 4)


def test_nothing_used_is_no_miss() -> None:
    assert hit_ratio(EVICTION["lru"], 1, []) == 1


numbers = st.lists(st.lists(st.sets(st.integers(0, 5), max_size=3).map(sorted), max_size=3), max_size=12)


@pytest.mark.parametrize("name", sorted(EVICTION))
@given(tokens=numbers, slots=st.integers(1, 20))
def test_a_cache_hits_between_never_and_all_but_first_uses(
    name: str, tokens: list[list[list[int]]], slots: int
) -> None:
    asked = steps(*tokens)
    uses = [block for step in asked for layer in step for block in layer]
    got = hit_ratio(EVICTION[name], slots, asked)
    if uses:
        most = 1 - len(set(uses)) / len(uses)
        assert 0 <= got <= most + 1e-9
        if slots >= len(set(uses)):
            assert got == pytest.approx(most)


def test_policies_see_each_token_begin_and_where_it_is() -> None:
    seen: list[tuple[str, list[int]]] = []

    class Spy(LRU):
        def __init__(self, route: Route) -> None:
            super().__init__()
            self._route = route

        def tick(self) -> None:
            seen.append(("tick", [*self._route.streams.values()]))

        def used(self, blocks: Sequence[BlockId]) -> None:
            seen.append(("used", [*self._route.streams.values()]))
            super().used(blocks)

    hit_ratio(Spy, 2, steps([[0], [1]], [[0], [1]]))
    assert seen == [("tick", [-1]), ("used", [0]), ("used", [1])] * 2
