"""Leases without events: the same as with them, where all is in memory."""

import pytest

from penstock.tiering.events import Acquire, Release, Slot
from penstock.tiering.planner.planner import Planner
from penstock.tiering.planner.regions import EXPERTS, STREAM
from penstock.tiering.units import BlockId
from tests.support.worlds.cases import D, X, land_all, watch
from tests.support.worlds.watch import Watch

ASKED = ((X[2], X[0]), (D[1],), (X[1],), (D[0], D[1]), (X[0],), (X[2], X[1], X[0]))


def loaded() -> Watch:
    """Two dense blocks and three experts, all in memory, in a forward of stream 1."""
    w = watch((D[0], 1), (D[1], 2), (X[0], 1), (X[1], 1), (X[2], 1), stream=4, experts=3)
    one = w.streams[1]
    w.begin(one)
    for block in (D[0], D[1], X[0], X[1], X[2]):
        w.acquire(one, (block,))
        land_all(w)
        w.release(one, block)
    return w


def seen(planner: Planner) -> object:
    """What a later decision can depend on, and what users are told."""
    order = {region: [*planner._policies[region].victims()] for region in (STREAM, EXPERTS)}
    return planner.counters, order, planner._cycle._seen, planner._route._at, planner.residency._leases


def with_events(planner: Planner, blocks: tuple[BlockId, ...]) -> list[Slot]:
    grants = planner.handle(Acquire(99, 1, blocks), 5.0)
    return [grant.slot for grant in grants]  # type: ignore[union-attr]


def test_the_same_slots_counts_and_order_as_with_events() -> None:
    ours, theirs = loaded().planner, loaded().planner
    for blocks in ASKED:
        assert ours.lease_resident(1, blocks) == with_events(theirs, blocks)
        assert seen(ours) == seen(theirs)
        ours.check_integrity()
        if not ours.give_back(1, blocks):  # streamed blocks: somebody may want their room
            ours.handle(Release(1, blocks), 5.0)
        theirs.handle(Release(1, blocks), 5.0)
        assert seen(ours) == seen(theirs)
        ours.check_integrity()


def unchanged(planner: Planner, blocks: tuple[BlockId, ...], region: str | None = None) -> None:
    before = repr(seen(planner))
    assert planner.lease_resident(1, blocks, region) is None
    assert repr(seen(planner)) == before


def test_nothing_happens_where_a_block_is_missing() -> None:
    w = watch((X[0], 1), (X[1], 1), (X[2], 1), experts=2)
    one = w.streams[1]
    w.begin(one)
    w.acquire(one, (X[0],))
    unchanged(w.planner, (X[0],))  # it is on its way
    land_all(w)
    unchanged(w.planner, (X[0], X[1]))
    unchanged(w.planner, (X[0],), STREAM)
    assert w.planner.lease_resident(1, (X[0],), EXPERTS) is not None


def test_room_that_somebody_waits_for_is_given_back_by_an_event() -> None:
    w = watch((X[0], 1), (X[1], 1), experts=1, streams=2)
    one, two = w.streams[1], w.streams[2]
    w.acquire(one, (X[0],))
    land_all(w)
    w.acquire(two, (X[1],))
    assert not w.planner.give_back(1, (X[0],))
    assert w.planner.residency.held(1) == {X[0]: 1}
    w.run_out()


def test_more_than_was_leased_cannot_be_given_back() -> None:
    planner = loaded().planner
    with pytest.raises((AssertionError, KeyError)):
        planner.give_back(1, (X[0],))
