"""Which pages are read until a certificate holds: rounds, runs of neighbours, reuse."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.kv.selection.certificate import Certificate, NotBounded, Run, Selection, runs, select


class Known:
    """One head whose pages' true parts and bounds are plain numbers; pages count as read when they are added."""

    def __init__(self, true: Sequence[float], bounds: Sequence[float]) -> None:
        self.true, self.bounds = true, bounds
        self.read: set[int] = set()
        self.asked: list[bool] = []

    def add(self, batch: Iterable[Run]) -> None:
        pages = [page for run in batch for page in run.pages]
        assert self.read.isdisjoint(pages)
        self.read.update(pages)

    def omitted(self) -> list[float]:
        read = sum(self.true[page] for page in self.read)
        left = sum(bound for page, bound in enumerate(self.bounds) if page not in self.read)
        return [left / (left + read) if left else 0.0]

    def needed(self, epsilon: float, *, hopeful: bool) -> list[int]:
        """The certain answer is all pages: their lower bound is 0."""
        self.asked.append(hopeful)
        order = sorted(set(range(len(self.true))) - self.read, key=lambda page: -self.bounds[page])
        known = sum(self.true[page] for page in self.read)
        for count in range(len(order)):
            sure = known + (sum(self.bounds[page] for page in order[:count]) if hopeful else 0.0)
            left = sum(self.bounds[page] for page in order[count:])
            if left and left / (left + sure) <= epsilon:
                return sorted(order[:count])
        return sorted(order)


def finished(known: Known, epsilon: float = 0.1, gap: int = 0, at_first: Iterable[int] = ()) -> Certificate:
    choice = select(known, epsilon=epsilon, gap=gap, at_first=at_first)
    try:
        while True:
            known.add(next(choice))
    except StopIteration as end:
        certificate: Certificate = end.value
        return certificate


def test_true_bounds_take_one_round() -> None:
    parts = [1.0, 50.0, 2.0, 47.0]
    assert finished(Known(parts, parts)) == Certificate((1, 3), (pytest.approx(0.03),), 1)


def test_what_turns_out_to_be_less_than_its_bound_takes_a_second_round() -> None:
    known = Known([10.0, 50.0, 2.0, 1.0], [50.0, 50.0, 8.0, 1.0])
    certificate = finished(known)
    assert certificate.pages == (0, 1, 2)
    assert certificate.rounds == 2
    assert known.asked == [True, False]


def test_nothing_is_read_if_nothing_can_be_missing() -> None:
    known = Known([1.0, 1.0], [1.0, 1.0])
    known.read = {0, 1}
    assert finished(known) == Certificate((), (0.0,), 0)


def test_pages_of_the_last_step_are_read_in_the_first_round() -> None:
    """And save the second."""
    known = Known([10.0, 50.0, 2.0, 1.0], [50.0, 50.0, 8.0, 1.0])
    certificate = finished(known, at_first=(2,))
    assert certificate.pages == (0, 1, 2)
    assert certificate.rounds == 1


def test_pages_between_count_as_read() -> None:
    known = Known([50.0, 5.0, 45.0, 0.0], [50.0, 5.0, 45.0, 0.0])
    certificate = finished(known, gap=1)
    assert certificate.pages == (0, 1, 2)
    assert certificate.omitted == (0.0,)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -1.0, float("nan")])
def test_epsilon_is_a_share(epsilon: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        next(select(Known([1.0], [1.0]), epsilon=epsilon))


def test_pages_that_were_not_added_are_noticed() -> None:
    choice = select(Known([1.0, 1.0], [1.0, 1.0]), epsilon=0.1)
    next(choice)
    with pytest.raises(NotBounded, match="asked for"):
        next(choice)


@given(st.sets(st.integers(0, 60)), st.integers(0, 5), st.integers(1, 12), st.sets(st.integers(0, 60)))
def test_runs_have_every_page_once(pages: set[int], gap: int, longest: int, read: set[int]) -> None:
    pages -= read
    found = runs(pages, gap=gap, longest=longest, read=read)
    covered = [page for run in found for page in run.pages]
    assert covered == sorted(set(covered))
    assert pages <= set(covered)
    assert read.isdisjoint(covered)
    for run in found:
        assert run.count <= longest
        assert {run.first, run.first + run.count - 1} <= pages
        inside = sorted(pages & set(run.pages))
        assert all(later - earlier <= gap + 1 for earlier, later in pairwise(inside))
    for one, other in pairwise(found):
        between = set(range(one.first + one.count, other.first))
        joined = other.first + 1 - one.first
        assert len(between) > gap or joined > longest or between & read


def test_a_selection_is_reused_while_every_head_asks_for_much_the_same() -> None:
    last = Selection((3, 4, 9))
    assert last.reused([0.95, 0.99]) == (3, 4, 9)
    assert last.reused([0.95, 0.7]) == ()
    assert last.reused([0.7], least=0.5) == (3, 4, 9)
    assert last.reused([float("nan")]) == ()
