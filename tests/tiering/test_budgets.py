"""Which budgets are looked at, and which is recommended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.budgets import budgets, knee
from penstock.tiering.units import PAGE, GiB, MiB


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 1 << 41))
def test_budgets_go_from_the_least_to_everything(least, more, wanted):
    whole = least + more
    found = budgets(least, whole, wanted)
    assert found == sorted(set(found))
    assert found[0] == least
    assert whole in found
    assert (wanted in found) == (wanted >= least)
    assert max(found) == max(whole, wanted)


def test_budgets_are_whole_pages_beyond_the_least():
    assert all((budget - 77) % PAGE == 0 for budget in budgets(77, GiB, 0)[:-1])


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ([1, 5, 9, 9.5, 10], 3),  # rises, then hardly any more
        ([1, 2, 3, 4, 5], 5),  # each pays alike: to the end
        ([1, 1.1, 1.5, 3, 9], 5),  # as a streamed model does: the last pays most
        ([5, 5, 5, 5, 5], 1),  # nothing to gain
        ([5, 5, 5.05, 5, 5.09], 1),  # or next to nothing
        ([5, 4, 3, 2, 1], 1),
        ([1, 9, 9, 9, 9], 2),  # the smallest that does
    ],
)
def test_the_knee_is_where_more_pays_little(speeds, expected):
    assert knee([(n * MiB, speed) for n, speed in enumerate(speeds, 1)]) == expected * MiB


def test_one_budget_is_its_own_knee():
    assert knee([(GiB, 3.0)]) == GiB


speed = st.floats(0.1, 1000)


@given(st.lists(st.tuples(st.integers(1, 1 << 40), speed), min_size=2, max_size=9, unique_by=lambda p: p[0]))
def test_beyond_the_knee_a_byte_adds_no_more_than_the_average_one(points):
    points = sorted(points)
    (first, slowest), (last, fastest) = points[0], points[-1]
    best = knee(points)
    reached = dict(points)[best]
    assert first <= best <= last
    if best < last and fastest > slowest * 1.02:
        average = (fastest - slowest) / (last - first)
        assert (fastest - reached) / (last - best) <= average
        assert all(other - reached <= average * (budget - best) + 1e-9 for budget, other in points if budget > best)
