"""Hundreds of random worlds of three tiers: both planners checked after every event, and nobody waits for ever."""

import pytest

from penstock.tiering.planner.regions import STREAM
from tests.support.worlds.lifted import Run

WORLDS = 400
"""That are gone through; the bugs in test_relay_mutations show in them."""
_PART = 100


@pytest.mark.parametrize("first", range(0, WORLDS, _PART))
def test_everybody_gets_what_he_waits_for_or_is_told(first: int) -> None:
    go_through(range(first, first + _PART))


@pytest.mark.soak
@pytest.mark.parametrize("first", range(WORLDS, 25 * WORLDS, WORLDS))
def test_thousands_of_worlds(first: int) -> None:
    go_through(range(first, first + WORLDS))


def go_through(seeds: range) -> None:
    for seed in seeds:
        try:
            Run(seed).go()
        except AssertionError as error:
            raise AssertionError(f"in world {seed}: {error}") from error


def test_the_worlds_are_what_they_are_meant_to_be() -> None:
    """Rings of one block, faults, several streams, evictions in both tiers, and blocks that pass the host by."""
    runs = [Run(seed).go() for seed in range(_PART)]
    below = [run.tiers.below for run in runs]
    tight = [run for run in runs if run.placements.below and run.least_below == run.placements.host.budget]
    assert len(tight) > _PART // 4
    assert sum(tier.setup.regions[STREAM] > 0 for tier in below) > _PART // 4
    assert sum(len(run.tiers.above.streams) > 2 for run in runs) > _PART // 4
    assert sum(tier.planner.counters.evictions > 0 for tier in below) > _PART // 4
    assert sum(run.tiers.above.planner.counters.evictions > 0 for run in runs) > _PART // 4
    assert sum(run.tiers.failed > 0 for run in runs) > _PART // 10
    assert sum(run.tiers.passed_by > 0 for run in runs) > _PART // 4
