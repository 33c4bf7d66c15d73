"""Streams that are in each other's way: who overtakes, and who is refused so that nobody waits for ever."""

from penstock.tiering.errors import UnplaceableModule
from penstock.tiering.events import Refuse
from tests.support.worlds.cases import D, X, land_all, reads, watch


def test_a_full_region_does_not_hold_back_a_neighbour_for_another() -> None:
    """d1 and x0 are neighbours on flash and in the queue; stream 1 holds the room for d1 and waits for x0."""
    w = watch((D[0], 2), (D[1], 2), (X[0], 1), (X[1], 1), stream=2, experts=2, depth=1, streams=3)
    one, two, three = (w.streams[n] for n in (1, 2, 3))
    w.acquire(one, (D[0],))
    w.acquire(three, (X[1],))
    land_all(w)
    w.acquire(two, (D[1],))
    assert reads(w.acquire(one, (X[0],))) == [(X[0],)]
    land_all(w)
    w.run_out()
    assert not two.failed


def test_a_demand_that_fits_overtakes_when_all_else_is_stuck() -> None:
    """Stream 2 wants d2, too big beside d0, which stream 1 holds while it asks for d1, which fits."""
    w = watch((D[0], 1), (D[1], 1), (D[2], 3), stream=3, limit=1)
    one, two = w.streams[1], w.streams[2]
    w.acquire(one, (D[0],))
    land_all(w)
    w.acquire(two, (D[2],))
    w.acquire(one, (D[1],))
    land_all(w)
    assert one.held == {D[0]: 1, D[1]: 1}
    w.run_out()
    assert not two.failed


def test_of_two_who_block_each_other_one_is_refused() -> None:
    w = watch(*((d, 1) for d in D[:4]), stream=2, limit=1)
    one, two = w.streams[1], w.streams[2]
    w.acquire(one, (D[0],))
    w.acquire(two, (D[1],))
    land_all(w)
    w.acquire(one, (D[2],))
    actions = w.acquire(two, (D[3],))
    (refusal,) = (action for action in actions if isinstance(action, Refuse))
    assert refusal.ticket == 3
    assert "'d2'" in str(refusal.error)
    w.run_out()


def test_one_who_holds_nothing_is_not_refused_for_those_who_block_each_other() -> None:
    w = watch(*((d, 1) for d in D[:5]), stream=2, limit=1, streams=3)
    one, two, three = (w.streams[n] for n in (1, 2, 3))
    w.acquire(one, (D[0],))
    w.acquire(two, (D[1],))
    land_all(w)
    w.acquire(three, (D[4],))
    w.acquire(one, (D[2],))
    w.acquire(two, (D[3],))
    assert (one.failed, two.failed, three.failed) == (True, False, False)
    w.run_out()


def test_what_is_larger_than_its_region_is_refused() -> None:
    w = watch((X[0], 3), (D[0], 3), stream=2, experts=2)
    for block in (X[0], D[0]):
        (refusal,) = w.acquire(w.streams[1], (block,))
        assert isinstance(refusal, Refuse)
        assert isinstance(refusal.error, UnplaceableModule)
        w.end(w.streams[1])


def test_a_deadlock_over_two_regions_is_found() -> None:
    """Stream 1 keeps an expert while it waits for a dense block, stream 2 the other way round."""
    w = watch((D[0], 1), (D[1], 1), (X[0], 1), (X[1], 1), stream=1, experts=1, limit=1)
    one, two = w.streams[1], w.streams[2]
    w.acquire(one, (X[0],))
    w.acquire(two, (D[0],))
    land_all(w)
    w.acquire(one, (D[1],))
    w.acquire(two, (X[1],))
    assert one.failed or two.failed
    w.run_out()
