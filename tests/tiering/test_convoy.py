"""How far streams are apart, and who had better wait."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.convoy import Convoy, leads
from penstock.tiering.policy.cycle import Cycle
from penstock.tiering.units import PAGE

from .cases import D, X, land_all, watch
from .worlds import World


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


def test_leads_are_in_bytes_of_what_is_streamed_now() -> None:
    cycle = Cycle(D)
    convoy = Convoy(cycle, {block: 10 * (n + 1) for n, block in enumerate(D)})
    cycle.begin(1)
    assert convoy.lead(1, D[3]) == 0, "alone"
    cycle.begin(2)
    cycle.advance(1, D[1])
    assert convoy.lead(1, D[2]) == 10 + 20
    assert convoy.lead(2, D[0]) == 0
    cycle.leave([D[0]])
    assert convoy.lead(1, D[2]) == 20
    assert convoy.lead(1, X[0]) == convoy.lead(3, D[2]) == 0, "outside of the cycle, or of a forward"


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
    assert not w.planner.hurries(1, [D[1], D[2]]), "the other may need what it holds"
    w.release(one, D[0])
    assert w.planner.hurries(1, [D[1], D[2]])
    assert not w.planner.hurries(2, [D[0]])
    w.end(two)
    assert not w.planner.crowded


def test_worlds_without_a_stream_have_no_convoy() -> None:
    planner = World({}, {"stream": 0, "experts": PAGE, "kept": 0, "pinned": 0}, 1, PAGE).planner()
    assert not planner.crowded
    assert not planner.hurries(1, [X[0]])
