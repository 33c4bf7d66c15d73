"""Whether guessing goes on where it pays, stops where it costs, and comes back."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.prefetch.speculation import TRIAL, Speculation

MB = 1 << 20


def forward(policy: Speculation, *, right: int, wrong: int, seconds: float = 0.0, crowded: bool = True) -> None:
    """One forward in which, if guessing is on, so many guesses of 1 MiB are right and wrong."""
    policy.tick()
    policy.drive(10 * MB, 0.005)
    if not policy.active:
        return
    policy.made(seconds)
    for _ in range(right):
        policy.landed(crowded=crowded)
        policy.came_true(MB)
    for _ in range(wrong):
        policy.landed(crowded=crowded)
        policy.failed(MB)


def share_active(policy: Speculation, forwards: int, **what: float) -> float:
    active = 0
    for _ in range(forwards):
        forward(policy, **what)  # type: ignore[arg-type]
        active += policy.active
    return active / forwards


def test_goes_on_where_it_pays() -> None:
    assert share_active(Speculation(), 500, right=8, wrong=3) == 1


def test_stops_where_it_is_mostly_wrong_and_tries_ever_more_rarely() -> None:
    policy = Speculation()
    first = share_active(policy, 100, right=1, wrong=9)
    later = share_active(policy, 2000, right=1, wrong=9)
    assert later < first < 0.5
    assert 0 < later < 0.05  # but it is still tried


def test_stops_where_nothing_is_left_to_save() -> None:
    """All experts are in memory: a guess costs its time and brings nothing."""
    assert share_active(Speculation(), 1000, right=0, wrong=0, seconds=0.001) < 0.1


def test_never_guesses_where_it_may_not() -> None:
    assert share_active(Speculation(allowed=False), 1000, right=8, wrong=0) == 0


def test_comes_back_when_it_begins_to_pay() -> None:
    policy = Speculation()
    share_active(policy, 1000, right=0, wrong=8)
    assert not policy.active
    share_active(policy, 520, right=8, wrong=0)
    assert share_active(policy, 200, right=8, wrong=0) == 1


def test_wrong_guesses_cost_less_on_an_idle_drive() -> None:
    assert share_active(Speculation(), 200, right=4, wrong=8, crowded=False) == 1
    assert share_active(Speculation(), 200, right=4, wrong=8, crowded=True) < 0.5


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=TRIAL))
def test_what_is_forgotten_leaves_nothing_negative(course: list[tuple[int, int]]) -> None:
    policy = Speculation()
    for right, wrong in course:
        forward(policy, right=right, wrong=wrong)
        assert policy._saved >= 0
        assert policy._cost >= 0
