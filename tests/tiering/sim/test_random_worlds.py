"""Thousands of random worlds through the simulator: every invariant after every event, and everybody finishes."""

import pytest

from tests.support.worlds.runs import WORLDS, random_run

_PART = 100


@pytest.mark.parametrize("first", range(0, WORLDS, _PART))
def test_everybody_finishes_and_every_action_is_right(first: int) -> None:
    for seed in range(first, first + _PART):
        try:
            random_run(seed).watched()
        except AssertionError as error:
            raise AssertionError(f"in world {seed}: {error}") from error
