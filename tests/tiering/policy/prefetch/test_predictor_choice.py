"""Which predictor is followed, and what is known of each."""

import pytest

from penstock.tiering.policy.prefetch.predictor_choice import Predictors


def forwards(predictors: Predictors, count: int, *, price: float = 1.0, seconds: float = 0.0, **right: int) -> None:
    """Forwards in which each predictor named guesses four experts that are not in memory, so many of them right."""
    for _ in range(count):
        predictors.tick(price=price, read_seconds=0.001)
        if predictors.trial:
            for name, correct in right.items():
                predictors.judge(name, guessed=range(4), used=range(4 - correct, 9), absent=range(9), seconds=seconds)


def test_follows_the_first_until_another_saves_more() -> None:
    predictors = Predictors(("one", "two"))
    forwards(predictors, 40, one=3, two=3)
    assert predictors.followed == "one"
    forwards(predictors, 200, one=2, two=4)
    assert predictors.followed == "two"
    forwards(predictors, 1000, one=4, two=2)
    assert predictors.followed == "one"


def test_nobody_is_followed_for_losing_less() -> None:
    predictors = Predictors(("one", "two"))
    forwards(predictors, 100, one=0, two=1)
    assert predictors.followed == "one"


def test_what_a_read_in_vain_costs_decides_between_bold_and_careful() -> None:
    def bold_and_careful(price: float) -> str:
        predictors = Predictors(("bold", "careful"))
        for _ in range(40):
            predictors.tick(price=price, read_seconds=0.001)
            if predictors.trial:
                predictors.judge("bold", guessed=range(10), used=range(5), absent=range(10), seconds=0.0)
                predictors.judge("careful", guessed=range(3), used=range(5), absent=range(10), seconds=0.0)
        return predictors.followed

    assert bold_and_careful(price=0.25) == "bold"
    assert bold_and_careful(price=1.0) == "careful"


def test_a_slow_predictor_must_save_the_time_it_takes() -> None:
    predictors = Predictors(("one", "two"))
    forwards(predictors, 40, one=2, two=0)
    forwards(predictors, 100, one=2, seconds=0.01, two=3)
    assert predictors.followed == "one", "both cost more than they save"


def test_what_is_in_memory_saves_nothing() -> None:
    predictors = Predictors(("one",))
    predictors.tick(price=1.0, read_seconds=0.001)
    predictors.judge("one", guessed=[1, 2, 3], used=[2, 3, 4, 5], absent=[1, 3], seconds=0.5)
    record = predictors.records["one"]
    assert (record.precision, record.recall) == (pytest.approx(2 / 3), 0.5)
    assert (record.saved, record.wasted) == (1, 1)
    assert record.gain(price=0.5, read_seconds=2.0) == pytest.approx(0.5)


def test_trials_are_rare() -> None:
    predictors = Predictors(("one",))
    trials = 0
    for _ in range(320):
        predictors.tick(price=1.0, read_seconds=0.001)
        trials += predictors.trial
    assert trials == 20
    assert predictors.records["one"].precision == predictors.records["one"].recall == 0
