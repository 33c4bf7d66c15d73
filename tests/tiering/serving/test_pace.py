"""The pace of a queue: those who are refused are told when there will be a place for them."""

from penstock.tiering.serving.pace import LEAST, MOST, Pace


def test_the_time_is_that_between_two_that_leave() -> None:
    pace = Pace()
    for now in range(0, 50, 5):
        pace.leave(now, others=True)
    assert pace.refuse(46) == 5
    assert pace.refuse(46) == 10, "the one before is first"
    pace.leave(50, others=True)
    assert pace.refuse(50) == 10


def test_a_queue_that_has_stopped_says_so() -> None:
    pace = Pace()
    pace.leave(0, others=True)
    pace.leave(2, others=True)
    assert pace.refuse(102) == 100
    assert pace.refuse(100_000) == MOST


def test_time_in_which_nobody_waits_does_not_count() -> None:
    pace = Pace()
    assert pace.refuse(0) == LEAST
    for start in range(0, 9000, 1000):
        pace.leave(start, others=True)
        pace.leave(start + 3, others=False)
    assert pace.refuse(9000) == 3
