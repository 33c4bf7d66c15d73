"""Copies of pages on a device: whatever comes, goes and is looked at, the books agree, and the newest are there."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.tiering.kv.device_pages import DevicePages, Pair
from penstock.tiering.kv.pages import Page
from penstock.tiering.units import PAGE

STEP = st.tuples(
    st.sampled_from(["give", "give", "land", "look", "looked", "free"]), st.integers(0, 3), st.integers(0, 30)
)


def made(track: int, index: int, size: int = PAGE) -> tuple[Page, Page]:
    """The keys and the values of a track; the values' track has another number."""
    return Page(size, None, track, index, memory="kept"), Page(size, None, 100 + track, index, memory="kept")


def keys_of(pairs: list[Pair]) -> list[Page]:
    return [pair.keys for pair in pairs]


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=80))
def test_books(steps: list[tuple[str, int, int]]) -> None:
    books, all_, begun, looks = DevicePages(12 * PAGE), dict[Page, Page](), list[Pair](), list[list[Pair]]()
    index = dict.fromkeys(range(4), 0)
    for what, track, number in steps:
        match what:
            case "give":
                pages = made(track, index[track], PAGE * (1 + track // 2))
                index[track] += 1
                all_ |= dict.fromkeys(pages, pages[0])
                pair = books.give_room(*pages, newer=PAGE * 2 * (number % 4) * (number > 20))
                if pair is not None:
                    begun.append(pair)
                else:
                    assert not any(page.up for page in pages)
            case "land" if begun:
                books.landed(begun.pop(number % len(begun)).keys)
            case "look":
                looks.append(books.look([page for page in all_ if page.track == track]))
                assert all(pair.keys.up and pair.values.up for pair in looks[-1])
            case "looked" if looks:
                books.looked(keys_of(looks.pop(number % len(looks))))
            case "free" if all_:
                page = [*all_][number % len(all_)]
                books.forget(page)
                keys = all_.pop(page)
                for other in [each for each, its in all_.items() if its is keys]:
                    assert not other.up, "half of a pair is of no use"
        books.check_integrity(all_)
        assert books.used <= books.capacity
        rooms = sorted((pair.at, pair.at + pair.size) for some in looks for pair in {*some})
        apart = [after[0] >= before[1] or after == before for before, after in pairwise(rooms)]
        assert all(apart), "room that is looked at was given away"
    for some in looks:
        books.looked(keys_of(some))
    for page in all_:
        books.forget(page)
    assert books.used == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=40, max_size=120), st.integers(2, 30))
def test_the_newest_of_every_track_evenly(order: list[int], rooms: int) -> None:
    books = DevicePages(rooms * 2 * PAGE)
    tracks: dict[int, list[Page]] = {number: [] for number in range(4)}
    for track in order:
        keys, values = made(track, len(tracks[track]))
        tracks[track].append(keys)
        if (pair := books.give_room(keys, values)) is not None:
            books.landed(pair.keys)
    here = {number: [page for page in pages if page.up] for number, pages in tracks.items()}
    for number, pages in tracks.items():
        assert not here[number] or here[number] == pages[-len(here[number]) :], "a gap, or older ones"
    assert sum(map(len, here.values())) == min(rooms, len(order)), "room is left"
    most = max(map(len, here.values()))
    assert all(len(here[number]) >= most - 1 or here[number] == pages for number, pages in tracks.items())


def test_of_a_long_prompt_only_what_will_stay_goes_up() -> None:
    """Two layers are filled one after the other, each at once; a third one has little."""
    books, went = DevicePages(8 * 2 * PAGE), dict[int, list[int]]()
    for track, count in ((2, 1), (0, 50), (1, 50)):
        for index in range(count):
            keys, values = made(track, index)
            if (pair := books.give_room(keys, values, newer=(count - 1 - index) * 2 * PAGE)) is not None:
                books.landed(pair.keys)
                went.setdefault(track, []).append(index)
    assert went == {2: [0], 0: [*range(43, 50)], 1: [47, 48, 49]}


def test_what_is_looked_at_stays() -> None:
    books = DevicePages(2 * 2 * PAGE)
    pages = [made(0, index) for index in range(4)]
    for both in pages[:2]:
        pair = books.give_room(*both)
        assert pair is not None
        books.landed(pair.keys)
    looks = [books.look([pages[0][0]]), books.look([pages[0][0]])]
    assert [pair.keys for pair in looks[0]] == [pages[0][0]]
    assert books.give_room(*pages[2]) is not None, "the oldest that nobody looks at gives way"
    assert (pages[0][0].up, pages[1][0].up) == (True, False)
    books.forget(pages[0][1])
    books.looked(keys_of(looks[0]))
    assert books.used == 2 * 2 * PAGE, "somebody still looks"
    books.looked(keys_of(looks[1]))
    assert books.used == 2 * PAGE
    assert books.look([page for both in pages for page in both]) == [], "the copy of the other has not landed"


@pytest.mark.parametrize("capacity", [0, PAGE, 2 * PAGE - 1])
def test_no_room_at_all(capacity: int) -> None:
    books = DevicePages(capacity)
    assert books.give_room(*made(0, 0)) is None
    books.check_integrity([])
