"""The knapsack of the size dial: fits, never loses more with more bytes, near the best there is, as good as uniform."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.packing.arrange.fit import Option, choose_options, least_size

NAMES = ("small", "middle", "large")


def options(names: tuple[str, ...]) -> st.SearchStrategy[list[Option]]:
    each = st.builds(Option, st.just(""), st.integers(1, 40), st.integers(0, 30).map(float))
    return st.tuples(*[each] * len(names)).map(
        lambda found: [Option(name, o.bytes, o.loss) for name, o in zip(names, found, strict=True)]
    )


UNITS = st.lists(st.integers(1, len(NAMES)).flatmap(lambda count: options(NAMES[:count])), min_size=1, max_size=5)


def total(chosen: list[Option]) -> tuple[int, float]:
    return sum(option.bytes for option in chosen), sum(option.loss for option in chosen)


def best(units: list[list[Option]], size: int) -> float:
    return min(loss for bytes_, loss in map(total, map(list, product(*units))) if bytes_ <= size)


@given(UNITS, st.integers(0, 120))
def test_a_choice_fits_and_is_one_of_each_unit(units: list[list[Option]], more: int) -> None:
    size = least_size(units) + more
    chosen = choose_options(units, size)
    assert total(chosen)[0] <= size
    assert all(option in of_unit for option, of_unit in zip(chosen, units, strict=True))


@given(UNITS, st.integers(0, 120), st.integers(0, 60))
def test_a_larger_size_never_loses_more(units: list[list[Option]], more: int, further: int) -> None:
    size = least_size(units) + more
    assert total(choose_options(units, size + further))[1] <= total(choose_options(units, size))[1]


@given(UNITS, st.integers(0, 120))
def test_one_name_for_all_is_never_better(units: list[list[Option]], more: int) -> None:
    size = least_size(units) + more
    loss = total(choose_options(units, size))[1]
    for name in NAMES:
        named = [option for unit in units for option in unit if option.name == name]
        bytes_, uniform = total(named)
        assert len(named) < len(units) or bytes_ > size or loss <= uniform


@given(UNITS, st.integers(0, 120))
def test_what_is_lost_is_near_the_least(units: list[list[Option]], more: int) -> None:
    """Not more than one unit's choice above it; with room for all, and for nothing, it is the least."""
    least = least_size(units)
    largest = max(max(option.loss for option in unit) - min(option.loss for option in unit) for unit in units)
    assert (
        best(units, least + more)
        <= total(choose_options(units, least + more))[1]
        <= best(units, least + more) + largest
    )
    assert total(choose_options(units, least))[1] == best(units, least)
    assert total(choose_options(units, 10_000))[1] == best(units, 10_000)


def test_less_than_the_least_is_refused() -> None:
    units = [[Option("small", 10, 3.0), Option("large", 30, 0.0)]] * 3
    assert least_size(units) == 30
    with pytest.raises(ValueError, match="30 bytes"):
        choose_options(units, 29)


def test_what_a_large_unit_leaves_goes_to_small_ones() -> None:
    """The largest gain per byte is that of a unit that does not fit."""
    large = [Option("small", 10, 100.0), Option("large", 110, 0.0)]
    small = [[Option("small", 1, 1.0), Option("large", 11, 0.0)] for _ in range(20)]
    chosen = choose_options([large, *small], 10 + 20 + 99)
    assert [option.name for option in chosen].count("large") == 9
    assert chosen[0].name == "small"


def test_losses_decide_who_has_more() -> None:
    sensitive, other = ([Option("small", 10, loss), Option("large", 20, 0.0)] for loss in (5.0, 1.0))
    assert [option.name for option in choose_options([other, sensitive, other], 40)] == ["small", "large", "small"]


def test_one_name_for_all_is_taken_where_it_is_best() -> None:
    """By gain per byte, one of two has all, and nothing is left for the other."""
    units = [[Option("small", 1, 10.0), Option("middle", 6, 5.2), Option("large", 10, 1.0)]] * 2
    assert [option.name for option in choose_options(units, 12)] == ["middle", "middle"]
    assert [option.name for option in choose_options(units, 11)] == ["large", "small"]


def test_no_step_is_taken_without_those_before_it() -> None:
    unit = [Option("small", 1, 100.0), Option("middle", 51, 10.0), Option("large", 52, 9.9)]
    assert [option.name for option in choose_options([unit], 50)] == ["small"]
