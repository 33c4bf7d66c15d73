"""What finished runs teach: corrections of a forecast, and its range."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy import lessons
from penstock.tiering.policy.lessons import PerToken, Run, Span, Window, learn, nearest, summarise, taught
from penstock.tiering.policy.trust import LASTING
from penstock.tiering.units import GiB, MiB

TOKEN = PerToken(0.1, 0.02, 0.05, 50 * MiB)
QUIET = Run(1e9, GiB, TOKEN, 0.09, 0.12, False)


def test_a_run_is_the_middle_of_its_quiet_windows() -> None:
    seconds = (0.1, 0.1, 0.12, 0.08, 9.0, 0.1, 0.1, 0.1)
    quiet = [Window(TOKEN._replace(seconds=each), False) for each in seconds]
    loud = [Window(TOKEN._replace(seconds=0.5), True)] * 20
    run = summarise([*loud, *quiet], 1e9, GiB)
    assert run is not None
    assert (run.beside, run.budget) == (False, GiB)
    assert run.token == pytest.approx(TOKEN)
    assert (run.fast, run.slow) == (0.1, 0.1)
    beside = summarise([*loud, quiet[0]], 1e9, GiB)
    assert beside is not None
    assert beside.beside
    assert beside.token.seconds == 0.5
    assert summarise(quiet[:1], 1e9, GiB) is None
    assert summarise([], 1e9, GiB) is None


def test_runs_of_about_the_nearest_budget_count() -> None:
    runs = [QUIET._replace(budget=size) for size in (GiB, GiB + MiB, 4 * GiB)]
    assert nearest(runs, GiB + GiB // 2, 1e9) == runs[:2]
    assert nearest(runs, 40 * GiB, 1e9) == runs[2:]
    assert nearest(runs, GiB, 1e9 + LASTING + 1) == []
    assert nearest(runs, GiB, 1e9 - 1) == [], "a run at a time to come"
    assert nearest([], GiB, 1e9) == []
    assert nearest([*runs, QUIET._replace(battery=True)], GiB, 1e9, battery=True) == [QUIET._replace(battery=True)]


def test_computing_and_the_drive_are_corrected_apart() -> None:
    simulated = PerToken(0.06, 0.02, 0.025, 50 * MiB)
    found = learn(TOKEN, simulated)
    assert found.compute == pytest.approx(2.0)
    assert found.drive == pytest.approx(0.5)
    assert learn(TOKEN, simulated._replace(bytes_read=0.0, read_seconds=0.0)).drive == 1.0
    assert lessons.remaining(TOKEN, TOKEN._replace(seconds=0.05)) == pytest.approx(0.5)


@given(*[st.builds(PerToken, *[st.floats(0, 1e6)] * 3, st.floats(0, 1e18))] * 2)
def test_whatever_a_file_says_a_lesson_is_bounded(seen: PerToken, simulated: PerToken) -> None:
    for factor in (*learn(seen, simulated), lessons.remaining(seen, simulated)):
        assert 1 / 8 <= factor <= 8


def test_a_run_that_was_faster_than_rates_allow_refutes_them() -> None:
    assert lessons.refutes(TOKEN, TOKEN._replace(seconds=0.3))
    assert not lessons.refutes(TOKEN, TOKEN._replace(seconds=0.11))
    assert not lessons.refutes(TOKEN._replace(seconds=0.3), TOKEN), "slower ones may have had other reasons"
    speed = TOKEN.bytes_read / TOKEN.read_seconds
    assert lessons.refutes_drive([QUIET], speed / 2, since=0)
    assert not lessons.refutes_drive([QUIET], speed / 2, since=2e9), "measured since"
    assert not lessons.refutes_drive([QUIET], speed, since=0)
    assert not lessons.refutes_drive([], 1.0, since=0)


def test_a_range_holds_what_is_expected() -> None:
    wide = lessons.untaught(8.0, 10.0, 11.0)
    assert (wide.least, wide.expected, wide.most) == pytest.approx((6.8, 10.0, 12.65))
    sure = taught(10.0, [QUIET, QUIET._replace(slow=0.125)])
    assert (sure.least, sure.expected, sure.most) == pytest.approx((7.6, 10.0, 10 / 0.9 * 1.05))
    assert lessons.either(Span(15.0, 20.0, 25.0), Span(4.0, 5.0, 30.0)) == Span(4.0, 10.0, 30.0)
    assert lessons.beside_others(wide, 0.5).least == pytest.approx(3.4)


def test_runs_beside_others_extend_the_range_downwards() -> None:
    span = Span(8.0, 10.0, 12.0)
    slow = QUIET._replace(slow=0.5, beside=True)
    assert lessons.slowest_seen(span, [slow], GiB) == Span(2.0, 10.0, 12.0)
    assert lessons.slowest_seen(span, [slow], 2 * GiB) == span, "under another budget it says nothing"
    assert lessons.slowest_seen(span, [], GiB) == span
