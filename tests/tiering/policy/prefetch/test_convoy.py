"""How far streams are apart, and who had better wait."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.planner.regions import EXPERTS
from penstock.tiering.policy.prefetch.convoy import Convoy, leads
from penstock.tiering.policy.prefetch.route import Route
from penstock.tiering.units import PAGE, BlockId
from tests.support.worlds.cases import D, land_all, watch
from tests.support.worlds.watch import Watch
from tests.support.worlds.worlds import World, lay_out


def test_the_last_one_has_the_longest_empty_stretch_behind_it() -> None:
    assert leads({1: 10, 2: 30, 3: 35}, 100) == {1: 0, 2: 20, 3: 25}
    assert leads({1: 5, 2: 90}, 100) == {1: 15, 2: 0}, "over the end"
    assert leads({1: 40, 2: 40}, 100) == {1: 0, 2: 0}


@given(st.dictionaries(st.integers(1, 5), st.integers(0, 99), min_size=1))
def test_somebody_is_last_and_the_empty_stretch_is_behind_it(places: dict[int, int]) -> None:
    found = leads(places, 100)
    assert min(found.values()) == 0, "nobody would go on"
    assert {(place - lead) % 100 for place, lead in zip(places.values(), found.values(), strict=True)} == {
        places[stream] for stream in places if found[stream] == 0
    }
    for turn in set(places.values()):  # whoever else were last, the furthest would be further ahead
        assert max(found.values()) <= max((place - turn) % 100 for place in places.values())


def test_leads_are_in_bytes_of_what_counts() -> None:
    route = Route("abcd")
    convoy = Convoy(route, {"a": 10, "b": 20, "d": 40})
    route.begin(1)
    assert convoy.lead(1, "d") == 0, "alone"
    route.begin(2)
    route.reach(1, "b")
    assert convoy.lead(1, "c") == 10 + 20
    assert convoy.lead(1, "d") == 10 + 20, "c does not count"
    assert convoy.lead(2, "a") == convoy.lead(3, "d") == 0
    route.end(2)
    assert convoy.lead(1, "d") == 0


def test_nobody_leads_where_nothing_counts() -> None:
    route = Route("ab")
    route.begin(1)
    route.begin(2)
    route.reach(1, "b")
    assert Convoy(route, {}).lead(1, "b") == 0


def test_ahead_is_the_way_of_the_stream_that_comes_first() -> None:
    route = Route(["a", "a", "b", "c", "d"])
    assert route.ahead("abcd") == [0.25, 0.5, 0.75, 1.0]
    route.begin(1)
    route.reach(1, "b")
    assert route.ahead("abcd") == [0.75, 1.0, 0.25, 0.5]
    route.begin(2)
    assert route.ahead("abcd") == [0.25, 0.5, 0.25, 0.5]
    route.end(1)
    route.reach(1, "c")
    assert route.ahead("d") == [1.0], "outside of a forward nothing is said of what comes next"


def test_who_is_ahead_by_an_eighth_of_the_room_hurries_unless_it_holds_some() -> None:
    w = watch(*((d, 1) for d in D), stream=8)
    one, two = w.streams[1], w.streams[2]
    w.begin(one)
    w.acquire(one, (D[0],))
    land_all(w)
    assert not w.planner.crowded
    w.begin(two)
    assert w.planner.crowded
    assert not w.planner.hurries(1, [D[1]]), "one page is an eighth"
    assert not w.planner.hurries(1, [D[2]]), "the other may need what it holds"
    w.release(one, D[0])
    assert w.planner.hurries(1, [D[2]])
    assert not w.planner.hurries(2, [D[0]])
    w.end(two)
    assert not w.planner.crowded


def test_the_room_for_experts_counts_likewise() -> None:
    sizes = [(BlockId("expert", f"m{n}", part), EXPERTS, 1) for n in range(4) for part in range(3)]
    blocks = [block for block, _, _ in sizes]
    capacity = {"pinned": 0, "kept": 0, "stream": 0, "experts": 8 * PAGE}
    w = Watch(World(lay_out(sizes), capacity, 2, 8 * PAGE), 2)
    one, two = w.streams[1], w.streams[2]
    w.begin(one)
    w.begin(two)
    w.acquire(one, (blocks[0],))
    land_all(w)
    w.release(one, blocks[0])
    assert w.planner.hurries(1, [blocks[3]]), "three pages: all experts of the layer that the other comes to"
    w.acquire(two, (blocks[1],))
    land_all(w)
    w.release(two, blocks[1])
    assert not w.planner.hurries(1, [blocks[3]])
    w.resize({"experts": 3 * PAGE})
    assert not w.planner.hurries(1, [blocks[3]])
