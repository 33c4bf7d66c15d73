"""What becomes of a block that was read on a guess, and what is told of it."""

import pytest

from penstock.tiering.events import Expect, Part, Purpose, Read, Slot
from penstock.tiering.planner.counters import Counters
from penstock.tiering.planner.expectations import Expectations
from penstock.tiering.policy.prefetch.speculation import Speculation
from penstock.tiering.units import PAGE, BlockId, Extent

A, B = BlockId("expert", "m", 0), BlockId("expert", "m", 1)


class Told(Speculation):
    """Keeps what it is told of guesses."""

    def __init__(self) -> None:
        super().__init__()
        self.right: list[int] = []
        self.wrong: list[int] = []
        self.crowded: list[bool] = []

    def came_true(self, size: int) -> None:
        self.right.append(size)

    def failed(self, size: int) -> None:
        self.wrong.append(size)

    def landed(self, *, crowded: bool) -> None:
        self.crowded.append(crowded)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def expectations(counters: Counters, told: Told) -> Expectations:
    """Stream 1 expects A, and it has been read on that guess."""
    expectations = Expectations(counters, told)
    expectations.expect(Expect(1, (), (A,), 0.0))
    expectations.started(read(0, A))
    expectations.landed(read(0, A), 1.0)
    return expectations


def read(number: int, block: BlockId) -> Read:
    return Read(number, (Part(block, Extent(0, 0, PAGE), Slot("experts", 0, PAGE)),), Purpose.GUESS)


def test_a_guess_comes_true_once(expectations: Expectations, counters: Counters, told: Told) -> None:
    expectations.asked(1, (A, B))
    assert not expectations
    expectations.evicted(A)
    expectations.expect(Expect(1, (A,), (), 0.0))
    assert (told.right, told.wrong) == ([PAGE], [])
    assert (counters.guess_bytes, counters.guess_bytes_used) == (PAGE, PAGE)


def test_certainty_makes_a_guess_come_true(expectations: Expectations, told: Told) -> None:
    expectations.expect(Expect(2, (A,), (), 0.0))
    assert told.right == [PAGE]


def test_a_guess_that_goes_has_failed(expectations: Expectations, counters: Counters, told: Told) -> None:
    expectations.evicted(A)
    expectations.asked(1, (A,))
    assert (told.right, told.wrong) == ([], [PAGE])
    assert counters.guess_bytes_used == 0


def test_a_guess_fails_when_the_last_who_expects_it_changes_its_mind(expectations: Expectations, told: Told) -> None:
    expectations.expect(Expect(2, (), (A,), 0.0))
    expectations.expect(Expect(1, (), (B,), 0.0))
    assert A in expectations
    assert told.wrong == []
    expectations.end(2)
    assert A not in expectations
    assert told.wrong == [PAGE]


def test_what_cannot_be_read_says_nothing_about_a_guess(expectations: Expectations, told: Told) -> None:
    expectations.unreadable(A)
    expectations.end(1)
    assert (told.right, told.wrong) == ([], [])


def test_only_guesses_in_flight_are_crowded(expectations: Expectations, told: Told) -> None:
    expectations.started(read(1, B))
    expectations.crowd()
    expectations.started(read(2, A))
    expectations.landed(read(1, B), 1.0)
    expectations.landed(read(2, A), 1.0)
    assert told.crowded == [False, True, False]
