"""Which budgets are looked at, and which is recommended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.placement.budgets import ENOUGH, budgets, enough
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
        ([5, 5, 5.05, 5, 5.09], 1),  # next to nothing to gain
        ([1, 9, 10, 8, 7], 2),  # more is slower
    ],
)
def test_enough_is_the_least_that_is_nearly_the_best(speeds, expected):
    assert enough([(n * MiB, speed) for n, speed in enumerate(speeds, 1)]) == expected * MiB


@given(st.dictionaries(st.integers(1, 1 << 40), st.floats(0.1, 1000), min_size=1, max_size=9))
def test_nothing_smaller_is_enough_and_nothing_larger_much_faster(speeds):
    found = enough(list(speeds.items()))
    assert max(speeds.values()) <= speeds[found] / ENOUGH * (1 + 1e-9)
    assert all(speed < ENOUGH * max(speeds.values()) for budget, speed in speeds.items() if budget < found)
