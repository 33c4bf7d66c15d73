"""Neighbours in one file join into a read, up to its limit."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.planner.coalesce import joins
from penstock.tiering.units import PAGE, Extent


@given(st.lists(st.integers(1, 6), min_size=2, max_size=8), st.integers(1, 20))
def test_neighbours_join_up_to_the_limit(pages: list[int], limit: int) -> None:
    ends = [0, *itertools.accumulate(n * PAGE for n in pages)]
    extents = [Extent(0, start, end - start) for start, end in itertools.pairwise(ends)]
    for last in range(len(extents) - 1):
        fits = sum(pages[: last + 2]) <= limit
        assert joins(extents[0], extents[last], extents[last + 1], limit=limit * PAGE) is fits


def test_only_the_next_extent_of_the_same_file_joins() -> None:
    last = Extent(1, 2 * PAGE, PAGE)
    assert joins(last, last, Extent(1, 3 * PAGE, PAGE), limit=2 * PAGE)
    for other in (Extent(0, 3 * PAGE, PAGE), Extent(1, 4 * PAGE, PAGE), Extent(1, PAGE, PAGE), last):
        assert not joins(last, last, other, limit=99 * PAGE)
