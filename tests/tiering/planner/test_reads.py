"""What the planner reads, in what order, and what it does with what comes of it: single cases."""

import pytest

from penstock.tiering.errors import ReadError
from penstock.tiering.events import Acquire, Grant, Read, Refuse
from penstock.tiering.units import PAGE
from tests.support.worlds.cases import D, X, land_all, reads, watch


def test_neighbours_are_read_at_once_up_to_the_limit() -> None:
    w = watch(*((x, 1) for x in X), experts=6, limit=3)
    assert reads(w.acquire(w.streams[1], tuple(X[:5]))) == [(X[0], X[1], X[2]), (X[3], X[4])]


def test_those_here_are_granted_first() -> None:
    w = watch((X[0], 1), (X[1], 1), experts=2)
    w.acquire(w.streams[1], (X[1],))
    land_all(w)
    actions = w.acquire(w.streams[2], (X[0], X[1]))
    assert [type(action) for action in actions] == [Grant, Read]
    w.run_out()


def test_prefetch_goes_ahead_and_over_the_token_boundary() -> None:
    w = watch(*((d, 1) for d in D[:4]), stream=2, limit=1)
    one = w.streams[1]
    w.begin(one)
    land_all(w)
    for block, ahead in ((D[2], [D[3]]), (D[3], [D[0]])):
        w.acquire(one, (block,))
        land_all(w)
        w.release(one, block)
        land_all(w)
        assert all(a in w.ready for a in ahead)
    w.run_out()


def test_prefetch_goes_on_whichever_block_of_a_release_made_room() -> None:
    w = watch((X[0], 1), (D[0], 1), (D[1], 1), stream=1, experts=1, limit=1)
    one = w.streams[1]
    w.begin(one)
    for block in (D[0], X[0]):
        w.acquire(one, (block,))
        land_all(w)
    assert reads(w.release(one, X[0], D[0])) == [(D[1],)]


def test_prefetch_brings_nothing_before_what_it_evicted_itself() -> None:
    """d1, d2, d3 go to make room for d0; what is left of it is not for d4, which is needed after them."""
    w = watch((D[0], 3), (D[1], 2), *((d, 1) for d in D[2:]), stream=4, limit=1)
    one = w.streams[1]
    w.begin(one)
    w.acquire(one, (D[1],))
    land_all(w)
    assert w.ready == {D[1], D[2], D[3]}
    w.end(one)
    assert reads(w.log) == [(D[0],)]


def test_what_fails_is_not_prefetched_until_it_is_asked_for() -> None:
    w = watch((D[0], 1), stream=1)
    w.begin(w.streams[1])
    assert list(w.in_flight) == [0]
    w.fail(0)
    assert not w.in_flight
    w.acquire(w.streams[1], (D[0],))
    land_all(w)
    assert w.streams[1].held == {D[0]: 1}
    w.run_out()


def test_a_failed_read_refuses_each_ticket_once() -> None:
    w = watch(*((x, 1) for x in X), experts=4)
    w.acquire(w.streams[1], (X[0], X[1]))
    w.acquire(w.streams[2], (X[1], X[3]))
    error = ReadError("injected")
    w.fail(0)
    assert isinstance(w.log[0], Refuse)
    assert [action.ticket for action in w.log if isinstance(action, Refuse)] == [1, 2]
    assert str(w.log[0].error) == str(error)
    w.run_out()


def test_the_same_block_twice_in_one_wish_is_a_bug() -> None:
    w = watch((X[0], 1), experts=1)
    with pytest.raises(AssertionError):
        w.planner.handle(Acquire(1, 1, (X[0], X[0])), 0.0)


def test_counters() -> None:
    w = watch((X[0], 1), (X[1], 2), experts=2)
    one = w.streams[1]
    for block in (X[0], X[0], X[1]):
        w.acquire(one, (block,))
        land_all(w)
        w.release(one, block)
    counters = w.planner.counters
    assert (counters.expert_hits, counters.expert_misses, counters.evictions) == (1, 2, 1)
    assert (counters.reads, counters.demand_bytes, counters.prefetch_bytes) == (2, 3 * PAGE, 0)
    assert counters.busy_seconds == 2.0
