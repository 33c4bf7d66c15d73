"""Neighbours join, order is kept, nothing is lost."""

import itertools
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.coalesce import coalesce
from penstock.tiering.units import PAGE, BlockId, Extent

LIMIT = 4 * PAGE


@st.composite
def wanted(draw: st.DrawFn) -> list[tuple[BlockId, Extent]]:
    """Blocks of one flash, some neighbours, some not, asked for in an order with long sorted stretches."""
    laid, file, offset = [], 0, 0
    for part in range(draw(st.integers(0, 12))):
        step = draw(st.sampled_from(("next", "next", "next", "gap", "file")))
        if step == "gap":
            offset += PAGE
        elif step == "file":
            file, offset = file + 1, draw(st.sampled_from((offset, 0)))
        extent = Extent(file, offset, draw(st.integers(1, 6)) * PAGE)
        laid.append((BlockId("expert", "m", part), extent))
        offset = extent.end
    return laid if draw(st.booleans()) else draw(st.permutations(laid))


def joins(a: Extent, b: Extent) -> bool:
    return a.file == b.file and a.offset + a.length == b.offset


@given(wanted())
def test_runs(asked: list[tuple[BlockId, Extent]]) -> None:
    runs = list(coalesce(asked, limit=LIMIT))
    assert [item for run in runs for item in run] == asked
    for run in runs:
        assert run
        assert all(joins(a, b) for (_, a), (_, b) in itertools.pairwise(run))
        assert len(run) == 1 or sum(extent.length for _, extent in run) <= LIMIT
    for before, after in itertools.pairwise(runs):
        size = sum(extent.length for _, extent in before) + after[0][1].length
        assert not joins(before[-1][1], after[0][1]) or size > LIMIT, "split without need"


def test_lazy_by_one() -> None:
    pulled = []

    def source() -> Iterator[tuple[BlockId, Extent]]:
        for part in range(5):
            pulled.append(part)
            yield BlockId("expert", "m", part), Extent(part, 0, PAGE)

    runs = coalesce(source(), limit=LIMIT)
    assert len(next(runs)) == 1
    assert pulled == [0, 1]
    runs.close()


def test_no_longer_a_neighbour_once_a_run_is_full() -> None:
    extents = [Extent(0, n * 2 * PAGE, 2 * PAGE) for n in range(5)]
    runs = list(coalesce([(BlockId("dense", str(n)), e) for n, e in enumerate(extents)], limit=LIMIT))
    assert [len(run) for run in runs] == [2, 2, 1]
