"""Which experts the CPU computes that are not on the device: by the model's own figures never a mistake."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.miss_costs import _PAUSE, MissCosts
from penstock.tiering.policy.misses import Costs, Miss, choose_for_cpu

seconds = st.floats(1e-6, 1e-2)
costs = st.builds(
    Costs, copy=st.floats(1e-11, 1e-8), read=st.floats(1e-11, 1e-8), expert=seconds, row=st.floats(0, 1e-3)
)
rows = st.integers(1, 600)


def misses(here: st.SearchStrategy[bool], sizes: st.SearchStrategy[int]) -> st.SearchStrategy[list[Miss]]:
    each = st.lists(st.tuples(rows, sizes, here), max_size=8)
    return each.map(lambda found: [Miss(number, *miss) for number, miss in enumerate(found)])


any_misses = misses(st.booleans(), st.sampled_from([1 << 20, 3 << 20, 7 << 19]))


def end(misses: Sequence[Miss], chosen: Collection[int], costs: Costs, queued: int) -> float:
    """When the last is done with ``chosen`` on the CPU: one drive, then two lanes, in the order of arrival."""
    came, read = {}, 0.0
    for miss in misses:
        read += 0 if miss.here else miss.size * costs.read
        came[miss.expert] = 0.0 if miss.here else read
    cpu, copies = 0.0, queued * costs.copy
    last = 0.0
    for miss in sorted(misses, key=lambda miss: came[miss.expert]):
        if miss.expert in chosen:
            last = max(last, cpu := max(cpu, came[miss.expert]) + costs.expert + miss.rows * costs.row)
        else:
            last = max(last, copies := max(copies, came[miss.expert]) + miss.size * costs.copy)
    return last


@given(any_misses, costs, st.integers(0, 1 << 30))
def test_never_later_than_one_way_for_all(misses: list[Miss], costs: Costs, queued: int) -> None:
    found = end(misses, choose_for_cpu(misses, costs, queued=queued), costs, queued)
    everything = {miss.expert for miss in misses}
    assert found <= end(misses, (), costs, queued) * (1 + 1e-9)
    assert found <= end(misses, everything, costs, queued) * (1 + 1e-9)


@given(misses(st.just(True), st.just(1 << 20)), costs, st.integers(0, 1 << 24))
def test_of_equal_experts_in_memory_no_choice_is_better(misses: list[Miss], costs: Costs, queued: int) -> None:
    found = end(misses, choose_for_cpu(misses, costs, queued=queued), costs, queued)
    experts = [miss.expert for miss in misses]
    for count in range(len(experts) + 1):
        for chosen in combinations(experts, count):
            assert found <= end(misses, chosen, costs, queued) * (1 + 1e-9)


@given(any_misses, costs, st.integers(0, 1 << 30), st.floats(1.1, 100))
def test_a_slower_way_is_not_taken_more(misses: list[Miss], costs: Costs, queued: int, times: float) -> None:
    usual = choose_for_cpu(misses, costs, queued=queued)
    slow = replace(costs, expert=costs.expert * times, row=costs.row * times)
    assert choose_for_cpu(misses, slow, queued=queued) <= usual
    assert choose_for_cpu(misses, costs, queued=queued + (1 << 24)) >= usual


def test_those_with_few_rows_are_computed() -> None:
    misses = [Miss(number, rows, 1000, True) for number, rows in enumerate([9, 1, 500, 2])]
    assert choose_for_cpu(misses, Costs(copy=1e-3, read=0, expert=0.1, row=0.1)) == {0, 1, 3}
    assert choose_for_cpu(misses, Costs(copy=1e-9, read=0, expert=0.1, row=0.1)) == frozenset()
    assert choose_for_cpu(misses, Costs(copy=1e-3, read=0, expert=1e-6, row=0)) == {0, 1, 2, 3}


def test_what_flash_holds_up_is_not_hurried() -> None:
    """Both ways wait for the drive: copying what comes late costs nothing."""
    late = [Miss(0, 1, 1000, False), Miss(1, 1, 1000, False)]
    assert choose_for_cpu(late, Costs(copy=1e-9, read=1.0, expert=1e-3, row=0)) == frozenset()


@given(seconds, seconds, st.lists(st.tuples(st.integers(1, 8), st.integers(1, 64)), min_size=2, max_size=40))
def test_seconds_are_found_again(expert: float, row: float, measured: list[tuple[int, int]]) -> None:
    costs = MissCosts()
    for experts, each in [*measured, (1, 1), (1, 64)]:
        costs.computed(experts, experts * each, experts * (expert + each * row))
    assert costs.fit_line == (pytest.approx(expert, rel=1e-3, abs=1e-6), pytest.approx(row, rel=1e-3, abs=1e-6))


@given(st.lists(st.tuples(st.integers(1, 8), rows, seconds), min_size=1, max_size=10))
def test_no_measurement_gives_less_than_no_time(measured: list[tuple[int, int, float]]) -> None:
    costs = MissCosts()
    for experts, each, taken in measured:
        costs.computed(experts, experts * each, taken)
    assert min(costs.fit_line) >= 0
    assert max(costs.fit_line) > 0


def test_one_number_of_rows_says_nothing_of_many() -> None:
    costs = MissCosts()
    costs.computed(4, 4, 0.4)
    expert, row = costs.fit_line
    assert expert + row == pytest.approx(0.1)
    assert expert + 100 * row == pytest.approx(10)


def test_what_is_not_known_is_tried_and_what_was_slow_tried_again() -> None:
    costs, pair = MissCosts(), [Miss(0, 5, 1000, True), Miss(1, 2, 1000, True), Miss(2, 1, 1000, False)]
    assert costs.choose_for_cpu([], copy=1e-9, read=0, queued=0) == frozenset()
    assert costs.choose_for_cpu(pair, copy=1e-9, read=0, queued=0) == {1}, "the least work of what is here"
    costs.computed(1, 2, 1.0)
    tried = [costs.choose_for_cpu(pair, copy=1e-9, read=0, queued=0) for _ in range(2 * _PAUSE + 2)]
    assert [number for number, chosen in enumerate(tried) if chosen] == [_PAUSE, 2 * _PAUSE + 1]
