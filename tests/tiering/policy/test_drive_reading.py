"""How to read a drive, chosen from rates: the least that suffices, never a backend for nothing."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.drive_reading import (
    ENOUGH,
    LARGEST_READ,
    LEAST_DEPTH,
    UNMEASURED,
    Reading,
    choose,
    fixed,
    typical_read,
)
from penstock.tiering.units import PAGE, MiB


@dataclass(frozen=True)
class Measured:
    backend: str
    size: int
    depth: int
    bytes_per_second: float


def table(backend: str, rows: dict[int, dict[int, float]]) -> list[Measured]:
    """Rates by size in MiB and depth."""
    return [Measured(backend, size * MiB, depth, rate) for size, row in rows.items() for depth, rate in row.items()]


NVME = {1: {1: 1.0, 2: 1.8, 4: 2.9, 8: 3.0}, 4: {1: 2.0, 2: 2.9, 4: 3.0, 8: 3.0}, 8: {1: 2.5, 2: 3.0, 4: 3.0, 8: 3.0}}


def test_the_least_that_comes_near_the_best() -> None:
    rates = table("threads", NVME)
    assert choose(rates, block=MiB) == Reading("threads", MiB, 4)
    assert choose(rates, block=4 * MiB) == Reading("threads", MiB, 2)
    assert choose(rates, block=100 * MiB) == Reading("threads", MiB, 2)
    assert choose(rates, block=PAGE) == Reading("threads", MiB, 4)


def test_reads_grow_where_the_drive_wants_it() -> None:
    disk = {1: {1: 50.0, 8: 60.0}, 4: {1: 110.0, 8: 115.0}, 8: {1: 150.0, 8: 151.0}}
    assert choose(table("threads", disk), block=MiB) == Reading("threads", 8 * MiB, 2)


def test_one_in_flight_is_never_enough() -> None:
    assert choose(table("threads", {1: {1: 3.0, 2: 3.0, 4: 3.0}}), block=MiB).depth == LEAST_DEPTH


@pytest.mark.parametrize(("gain", "chosen"), [(0.5, "threads"), (1.04, "threads"), (1.2, "io_uring")])
def test_another_backend_has_to_be_clearly_faster(gain: float, chosen: str) -> None:
    other = {size: {depth: rate * gain for depth, rate in row.items()} for size, row in NVME.items()}
    rates = table("threads", NVME) + table("io_uring", other)
    assert choose(rates, block=MiB).backend == chosen


def test_buffered_where_direct_reads_are_slower() -> None:
    slower = {size: {depth: rate * 0.8 for depth, rate in row.items()} for size, row in NVME.items()}
    rates = table("threads", slower) + table("io_uring", slower) + table("buffered", NVME)
    assert choose(rates, block=MiB).backend == "buffered"


def test_backends_are_compared_where_both_were_measured() -> None:
    few = table("io_uring", {8: {8: 2.9}})
    assert choose(table("threads", NVME) + few, block=MiB).backend == "threads"
    assert choose(table("threads", {1: {1: 1.0}}) + few, block=MiB).backend == "threads"
    assert choose(few, block=MiB) == Reading("io_uring", 8 * MiB, 8)


def test_what_the_user_decides_stands() -> None:
    assert choose([], block=MiB) == UNMEASURED
    assert fixed(UNMEASURED) == UNMEASURED
    assert fixed(UNMEASURED, backend="io_uring", depth=7) == Reading("io_uring", UNMEASURED.size, 7)


cells = st.tuples(
    st.sampled_from(["threads", "io_uring", "buffered"]), st.sampled_from([1, 2, 8]), st.sampled_from([1, 2, 4, 16])
)


@given(st.dictionaries(cells, st.floats(1e-3, 1e12), min_size=1), st.integers(1, 64 * MiB))
def test_whatever_was_measured(found: dict[tuple[str, int, int], float], block: int) -> None:
    rates = [Measured(backend, size * MiB, depth, rate) for (backend, size, depth), rate in found.items()]
    reading = choose(rates, block=block)
    own = [rate for rate in rates if rate.backend == reading.backend]
    assert reading.size in {rate.size for rate in own}
    assert reading.depth in {rate.depth for rate in own} | {LEAST_DEPTH}
    best = max(rate.bytes_per_second for rate in own)
    assert max(rate.bytes_per_second for rate in own if rate.size == reading.size) >= ENOUGH * best


def test_the_typical_read_stands_for_the_blocks() -> None:
    assert typical_read([4096, 12288]) == 8192
    assert typical_read([5000]) == 8192
    assert typical_read([1 << 40]) == LARGEST_READ
    assert typical_read([]) > 0
