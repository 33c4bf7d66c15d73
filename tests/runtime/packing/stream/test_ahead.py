"""Matrices that are encoded ahead: in their order, within a bound, and with what went wrong where it is asked for."""

import threading
from collections.abc import Callable

import pytest

from penstock.runtime.packing.stream.ahead import Ahead, Work

DEADLINE = 60
"""Seconds after which a test gives up."""


class Matrices:
    """Makes works, and remembers in which order they were read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def work(self, name: str, size: int, result: Callable[[], str] | None = None) -> Work[str]:
        def read() -> Callable[[], str]:
            self.read.append(name)
            return result or (lambda: name.upper())

        return Work((name, None), size, read)


def test_all_is_read_in_order_and_taken_by_name() -> None:
    made = Matrices()
    ahead = Ahead[str](100, 2)
    ahead.expect(made.work(name, 10) for name in "abcdefgh")
    assert [ahead.take((name, None)) for name in "abcdefgh"] == list("ABCDEFGH")
    assert made.read == list("abcdefgh")
    ahead.close()


def test_never_more_is_read_than_there_is_room_for() -> None:
    made = Matrices()
    ahead = Ahead[str](25, 8)
    ahead.expect(made.work(name, 10) for name in "abcde")
    assert made.read == []
    assert ahead.take(("a", None)) == "A"
    assert made.read == ["a", "b"], "a third would not fit"
    assert ahead.take(("b", None)) == "B"
    assert made.read == ["a", "b", "c"]
    ahead.close()


def test_a_matrix_without_room_is_left_to_whoever_asks() -> None:
    made = Matrices()
    ahead = Ahead[str](25, 2)
    ahead.expect([made.work("a", 10), made.work("large", 26), made.work("b", 10)])
    assert [ahead.take((name, None)) for name in ("a", "large", "b", "other")] == ["A", None, "B", None]
    assert "large" not in made.read
    ahead.close()


def test_several_are_encoded_at_once() -> None:
    """Each waits until the other has begun."""
    met = threading.Barrier(2)

    def meet() -> str:
        met.wait(DEADLINE)
        return "met"

    made = Matrices()
    ahead = Ahead[str](100, 2)
    ahead.expect([made.work("a", 10, meet), made.work("b", 10, meet)])
    assert [ahead.take(("a", None)), ahead.take(("b", None))] == ["met", "met"]
    ahead.close()


def test_what_goes_wrong_is_raised_where_it_is_asked_for() -> None:
    def fail() -> str:
        raise ValueError("no such number")

    made = Matrices()
    ahead = Ahead[str](100, 1)
    ahead.expect([made.work("a", 10), made.work("b", 10, fail), made.work("c", 90)])
    assert ahead.take(("a", None)) == "A"
    with pytest.raises(ValueError, match="no such number"):
        ahead.take(("b", None))
    assert ahead.take(("c", None)) == "C", "its room is given back"
    ahead.close()


def test_what_is_expected_anew_replaces_the_rest() -> None:
    made = Matrices()
    ahead = Ahead[str](20, 1)
    ahead.expect(made.work(name, 10) for name in "abcd")
    assert ahead.take(("a", None)) == "A"
    ahead.expect([made.work("z", 20)])
    assert ahead.take(("b", None)) is None
    assert ahead.take(("z", None)) == "Z"
    ahead.close()
    ahead.close()
