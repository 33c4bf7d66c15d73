"""Orders of experts: against all orders there are, and what they save."""

from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.expert_order import Gain, count_pairs, gain, order_by_use, reads

EXPERTS = 6
groups = st.lists(st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=4).map(sorted), max_size=12)


def total(found: list[list[int]], order: list[int], most: int = EXPERTS) -> int:
    place = [order.index(expert) for expert in range(len(order))]
    return sum(reads(group, place, most) for group in found)


def test_together_counts_pairs() -> None:
    assert count_pairs([[0, 1, 2], [2, 1], [3]], 4) == [[0, 1, 1, 0], [1, 0, 2, 0], [1, 2, 0, 0], [0, 0, 0, 0]]


@given(groups)
def test_the_order_has_every_expert_once(found: list[list[int]]) -> None:
    assert sorted(order_by_use(count_pairs(found, EXPERTS))) == list(range(EXPERTS))


@given(groups)
def test_reads_are_experts_less_neighbours(found: list[list[int]]) -> None:
    order = order_by_use(count_pairs(found, EXPERTS))
    counts = count_pairs(found, EXPERTS)
    side_by_side = sum(counts[one][other] for one, other in pairwise(order))
    assert total(found, order) == sum(map(len, found)) - side_by_side


@given(groups)
def test_the_order_is_nearly_the_best_of_all(found: list[list[int]]) -> None:
    """Three quarters of the pairs that the best has side by side; a greedy path alone has half."""
    counts = count_pairs(found, EXPERTS)

    def saved(order: tuple[int, ...]) -> int:
        return sum(counts[one][other] for one, other in pairwise(order))

    best = max(map(saved, permutations(range(EXPERTS))))
    assert saved(tuple(order_by_use(counts))) >= 0.75 * best


def test_pairs_hidden_by_their_numbers_are_found() -> None:
    found = [[0, 7], [1, 6], [2, 5], [3, 4]] * 3 + [[7, 1]]
    order = order_by_use(count_pairs(found, 8))
    assert total(found, order, 8) == len(found)
    assert total(found, list(range(8)), 8) == 2 * len(found) - 3, "only 3 and 4 are neighbours by number"


def test_a_piece_is_turned_round_where_greed_was_wrong() -> None:
    # Greed takes 1-2 first and ends in 0-3, which were never together.
    counts = [[0] * 4 for _ in range(4)]
    for one, other, count in ((1, 2, 10), (0, 1, 9), (0, 2, 9), (1, 3, 9), (2, 3, 1)):
        counts[one][other] = counts[other][one] = count
    order = order_by_use(counts)
    assert sum(counts[one][other] for one, other in pairwise(order)) == 28


@pytest.mark.parametrize("experts", [0, 1, 2])
def test_few_experts(experts: int) -> None:
    assert order_by_use([[0] * experts for _ in range(experts)]) == list(range(experts))


def test_reads_join_neighbours_up_to_a_limit() -> None:
    place = [3, 0, 1, 2, 5]
    assert reads([0, 1, 2, 3], place, 4) == 1
    assert reads([0, 1, 2, 3], place, 3) == 2
    assert reads([0, 1, 2, 3], place, 1) == 4
    assert reads([1, 2, 4], place, 4) == 2
    assert reads([], place, 4) == 0


def test_the_gain_is_told_in_reads_and_bytes() -> None:
    found = gain([[0, 2], [0, 2], [1], [3, 1]], [0, 2, 1, 3], expert_bytes=100, read_limit=250)
    assert found == Gain(groups=4, reads_before=7 / 4, reads_after=1, bytes_per_group=175)
    assert found.bytes_per_read_before == pytest.approx(100)
    assert found.bytes_per_read_after == pytest.approx(175)
    assert found.worth_it


def test_large_experts_gain_nothing() -> None:
    found = gain([[0, 2]] * 5, [0, 2, 1, 3], expert_bytes=200, read_limit=250)
    assert found.reads_before == found.reads_after == 2
    assert not found.worth_it


def test_nothing_read_is_nothing_gained() -> None:
    found = gain([], [1, 0], expert_bytes=1, read_limit=4)
    assert (found.bytes_per_read_before, found.bytes_per_read_after, found.worth_it) == (0, 0, False)


@pytest.mark.parametrize(("after", "worth_it"), [(0.94, True), (0.96, False), (1.1, False)])
def test_little_is_not_worth_it(after: float, worth_it: bool) -> None:
    assert Gain(groups=10, reads_before=1, reads_after=after, bytes_per_group=1).worth_it is worth_it
