"""The generator of loads: as often, as long and as bursty as it is told."""

import statistics
from itertools import pairwise

import pytest
from arrivals import Arrival, arrivals


def some(**changes: float) -> list[Arrival]:
    options = {"rate": 2.0, "shape": 0.5, "zipf": 1.1, "most": 256, "seconds": 5000, "leaving": 0.1, "seed": 3}
    return [*arrivals(**(options | changes))]  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [0.5, 4.0])
def test_intervals_have_the_mean_and_the_spread_of_the_distribution(shape: float):
    found = some(shape=shape)
    intervals = [after.at - before.at for before, after in pairwise(found)]
    assert statistics.mean(intervals) == pytest.approx(0.5, rel=0.1)
    assert statistics.stdev(intervals) / statistics.mean(intervals) == pytest.approx(shape**-0.5, rel=0.1)


def test_short_ones_are_many_and_long_ones_few():
    lengths = [each.prompt for each in some()]
    ones, twos = lengths.count(1), lengths.count(2)
    assert ones / twos == pytest.approx(2**1.1, rel=0.15)
    assert min(lengths) == 1
    assert 200 < max(lengths) <= 256


def test_a_share_leaves_and_a_seed_repeats_all():
    found = some()
    assert sum(each.leaves is not None for each in found) / len(found) == pytest.approx(0.1, rel=0.15)
    assert found == some()
    assert found != some(seed=4)
    assert not any(each.leaves for each in some(leaving=0))
