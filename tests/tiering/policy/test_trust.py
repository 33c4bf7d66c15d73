"""What was measured is trusted by what went on beside it, by its spread, and by its age."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy import trust
from penstock.tiering.policy.measured import Measured, doubts_in_words, in_words_ago
from penstock.tiering.policy.trust import Beside, Cores, DriveBytes, beside, doubts_of

GOOD = Measured(when=1e9, seen=1e9, spread=0.1, doubts=(), others=0.0, waited=0.0)
DOUBTFUL = Measured(when=1e9, seen=1e9, spread=0.1, doubts=("cores",), others=1.0, waited=0.5)


@pytest.mark.parametrize(
    ("found", "spread", "cores", "doubts"),
    [
        (Beside(), 0.1, 2, ()),
        (Beside(others=0.1), 0.1, 2, ()),
        (Beside(waited=0.5), 0.1, 2, ()),  # for its own threads
        (Beside(others=1.0), 0.1, 2, ("cores",)),
        (Beside(others=1.0), 0.1, 64, ()),
        (Beside(others=1.0, waited=0.2), 0.1, 64, ("cores",)),
        (Beside(foreign=0.3), 0.1, 2, ("drive",)),
        (Beside(), 0.6, 2, ("spread",)),
        (Beside(2.0, 0.5, 0.5), 0.6, 2, ("cores", "drive", "spread")),
    ],
)
def test_what_disturbs_a_measurement_is_a_doubt(
    found: Beside, spread: float, cores: int, doubts: tuple[str, ...]
) -> None:
    assert doubts_of(found, spread, cores, drive=True) == doubts
    assert doubts_of(found, spread, cores, drive=False) == tuple(doubt for doubt in doubts if doubt != "drive")


def test_what_went_on_follows_from_counts() -> None:
    before, after = Cores(10.0, {1: (1.0, 0.0)}, 5.0), Cores(12.0, {1: (2.0, 1.0)}, 8.0)
    found = beside(before, after, DriveBytes(1000, 100), DriveBytes(2000, 700))
    assert found == Beside(1.5, 0.5, pytest.approx(0.4))
    assert beside(None, after, None, DriveBytes(1, 1)) == Beside()
    assert beside(after, after, DriveBytes(1, 1), DriveBytes(1, 9)) == Beside()


@pytest.mark.parametrize(
    ("age", "stale", "stale_in_doubt"),
    [(0.0, False, False), (700.0, False, True), (1900.0, True, True), (-5.0, True, True)],
)
def test_rates_are_stale_by_age_and_where_the_clock_was_set_back(age: float, stale: bool, stale_in_doubt: bool) -> None:
    assert GOOD.stale(GOOD.seen + age, battery=False) == stale
    assert DOUBTFUL.stale(DOUBTFUL.seen + age, battery=False) == stale_in_doubt


def test_rates_are_stale_once_the_power_is_another() -> None:
    unplugged = replace(GOOD, battery=True)
    assert [unplugged.stale(GOOD.seen, battery=battery) for battery in (True, False)] == [False, True]
    assert GOOD.stale(GOOD.seen, battery=True)
    assert not unplugged.seen_again(GOOD).stale(GOOD.seen, battery=False)


def test_a_doubtful_measurement_replaces_nothing_better() -> None:
    assert GOOD.replaces(None)
    assert DOUBTFUL.replaces(None)
    assert GOOD.replaces(GOOD)
    assert GOOD.replaces(DOUBTFUL)
    assert DOUBTFUL.replaces(DOUBTFUL)
    assert not DOUBTFUL.replaces(GOOD)
    old = Measured(when=1e9 - trust.LASTING - 1, seen=1e9, spread=0.1, doubts=(), others=0.0, waited=0.0)
    assert DOUBTFUL.replaces(old), "the machine is no longer what it was"


@given(st.floats(1e-12, 1e12))
def test_a_look_changes_rates_only_beyond_what_repeats_differ_by(ratio: float) -> None:
    factor = trust.moved(ratio)
    assert 1 / 16 <= factor <= 16
    assert (factor == 1.0) == (1 / 1.1 <= ratio <= 1.1)


@given(st.lists(st.floats(1e-6, 1e6), max_size=20))
def test_the_spread_is_a_share(repeats: list[float]) -> None:
    assert 0 <= trust.spread_of(repeats) < 1


def test_the_spread_of_some_repeats() -> None:
    assert trust.spread_of([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(1 / 3)
    assert trust.spread_of([7.0]) == trust.spread_of([7.0, 7.0, 7.0]) == 0


@pytest.mark.parametrize("field", ["when", "seen", "spread", "others", "waited"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_circumstances_name_their_field(field: str, value: float) -> None:
    given: dict[str, float] = {"when": 1.0, "seen": 1.0, "spread": 0.1, "others": 0.0, "waited": 0.0} | {field: value}
    with pytest.raises(ValueError, match=field):
        Measured(doubts=(), **given)


def test_it_is_said_in_words() -> None:
    assert GOOD.in_words(1e9 + 7200) == "measured 2 hours ago, repeats within 10%"
    assert replace(GOOD, battery=True).in_words(1e9) == "measured just now, on battery, repeats within 10%"
    assert "doubtful: other programs used 1.0 cores" in DOUBTFUL.in_words(1e9)
    assert doubts_in_words(("drive", "spread"), 0.0) == "other programs used the drive, its repeats differ"
    assert in_words_ago(-1) == "at a time to come"
