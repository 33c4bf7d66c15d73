"""The planner when the limit of a region moves: who goes, who stays, and what becomes of the memory."""

from dataclasses import replace

from penstock.tiering.events import Action, Discard, Grant
from penstock.tiering.planner.regions import EXPERTS, KEPT, PINNED, STREAM
from penstock.tiering.units import PAGE
from tests.support.worlds.cases import D, X, land_all, watch
from tests.support.worlds.watch import Watch
from tests.support.worlds.worlds import World, lay_out


def discarded(actions: list[Action]) -> int:
    return sum(action.length for action in actions if isinstance(action, Discard))


def test_what_is_leased_goes_when_it_is_given_back() -> None:
    w = watch((X[0], 1), (X[1], 1), (X[2], 1), experts=3)
    one = w.streams[1]
    w.acquire(one, (X[0], X[1], X[2]))
    land_all(w)
    w.release(one, X[1])
    w.resize({EXPERTS: PAGE})
    assert discarded(w.log) == PAGE
    w.release(one, X[2])
    assert discarded(w.log) == PAGE
    w.release(one, X[0])
    assert discarded(w.log) == 0, "it lies below the limit"
    w.acquire(one, (X[0],))
    assert any(isinstance(action, Grant) for action in w.log)


def test_a_low_limit_refuses_nobody_who_fits_with_all_the_memory() -> None:
    w = watch((D[0], 1), (D[1], 1), stream=2)
    one = w.streams[1]
    w.resize({STREAM: PAGE})
    w.acquire(one, (D[0],))
    land_all(w)
    w.acquire(one, (D[1],))
    land_all(w)
    assert one.held.keys() == {D[0], D[1]}
    w.end(one)
    assert discarded(w.log) == PAGE


def kept_watch() -> Watch:
    """Two blocks with places of their own, and one page through which others pass."""
    homes = lay_out([(D[0], KEPT, 1), (D[1], KEPT, 1)])
    homes = {block: replace(home, place=n * PAGE) for n, (block, home) in enumerate(homes.items())}
    return Watch(World(homes, {PINNED: 0, KEPT: 2 * PAGE, STREAM: PAGE, EXPERTS: 0}, 1, PAGE), 1)


def test_a_kept_block_is_streamed_for_a_while_and_returns() -> None:
    w = kept_watch()
    one = w.streams[1]
    w.resize({STREAM: 0})
    land_all(w)
    assert {w.slots[block].region for block in D[:2]} == {KEPT}
    w.acquire(one, (D[1],))
    w.resize({KEPT: PAGE, STREAM: PAGE})
    assert discarded(w.log) == 0
    w.release(one, D[1])
    assert discarded(w.log) == PAGE
    land_all(w)
    assert w.slots[D[1]].region == STREAM
    w.resize({KEPT: 2 * PAGE, STREAM: 0})
    land_all(w)
    assert w.slots[D[1]].region == KEPT
    assert not w.planner._cycle.order, "there is nothing to read along the cycle any more"


def test_a_read_beyond_the_limit_lands_is_used_and_goes() -> None:
    w = watch((X[0], 1), (X[1], 1), experts=2, limit=1)
    one = w.streams[1]
    w.acquire(one, (X[0], X[1]))
    w.resize({EXPERTS: PAGE})
    land_all(w)
    assert one.held.keys() == {X[0], X[1]}
    w.end(one)
    assert len(w.slots) == 1


def test_a_read_beyond_the_limit_that_fails_leaves_no_memory_behind() -> None:
    w = watch((X[0], 1), (X[1], 1), experts=2, limit=1)
    w.acquire(w.streams[1], (X[0], X[1]))
    w.resize({EXPERTS: PAGE})
    number = next(n for n, read in w.in_flight.items() if w.beyond(read.parts[0].slot))
    w.fail(number)
    assert discarded(w.log) == PAGE
    w.run_out()
