"""Slots in memory and places on flash: whatever is taken, kept and given back, the books agree with the pages."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.tiering.errors import FlashFull
from penstock.tiering.kv.extents import EXTENT, Places
from penstock.tiering.kv.memory import PageMemory
from penstock.tiering.kv.pages import Page, runs
from penstock.tiering.units import PAGE, MiB

SIZES = st.sampled_from([PAGE, 2 * PAGE, 5 * PAGE])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["open", "pass", "seal", "go", "reserve", "limit"]), SIZES, st.integers(0, 40)))
)
def test_memory(steps: list[tuple[str, int, int]]) -> None:
    memory, pages = PageMemory(40 * PAGE), list[Page]()
    for what, size, number in steps:
        page = pages[number % len(pages)] if pages else None
        match what:
            case "open" | "pass":
                made = Page(size, None, number % 3, number)
                free = memory.ring - memory.passing_bytes if what == "pass" else -memory.lacking
                if memory.place(made, passing=what == "pass"):
                    assert size <= free
                    made.memory = "passing" if what == "pass" else "open"
                    pages.append(made)
                else:
                    assert made.slot is None
            case "seal" if page is not None and page.memory == "open":
                page.memory = "kept"
                memory.keep(page)
            case "go" if page is not None:
                victims = [*memory.victims()]
                assert set(victims) == {each for each in pages if each.memory == "kept"}
                assert set(memory.beyond()) == {each for each in victims if (each.slot or 0) + each.size > memory.limit}
                memory.forget(page)
                memory.vacate(page)
                pages.remove(page)
            case "reserve":
                memory.reserve(PAGE if number % 2 else -min(PAGE, memory.reserved))
            case "limit":
                for start, length in memory.resize(number * PAGE):
                    assert start >= memory.limit
                    assert all(p.slot is None or p.slot + p.size <= start or p.slot >= start + length for p in pages)
        memory.check_integrity(pages)
        assert memory.used <= memory.capacity


def test_what_is_used_is_no_victim() -> None:
    memory = PageMemory(40 * PAGE)
    pages = [Page(PAGE, None, 0, index) for index in range(4)]
    for page in pages:
        assert memory.place(page, passing=False)
        page.memory = "kept" if page.index != 3 else "open"
        if page.sealed:
            memory.keep(page)
    pages[1].leases = 1
    assert [page.index for page in memory.victims()] == [2, 0], "newest first"


def test_a_page_takes_the_place_of_a_colder_one() -> None:
    """Of its track, or of the track that has most, if that has more."""
    memory = PageMemory(40 * PAGE)
    pages = [
        Page(PAGE, None, track, index, memory="kept", attention_score=2.0)
        for track, index in ((0, 0), (1, 0), (1, 1), (1, 2))
    ]
    for page in pages:
        assert memory.place(page, passing=False)
        memory.keep(page)
    passing = Page(PAGE, None, 0, 7, memory="passing", attention_score=1.0)
    assert memory.place(passing, passing=True)
    assert memory.colder(passing) is None
    pages[2].attention_score = 0.5
    pages[3].attention_score = 0.75
    assert memory.colder(passing) is pages[2]
    pages[0].attention_score = 0.9
    assert memory.colder(passing) is pages[0], "its own track comes first"
    pages[0].leases = 1
    memory.forget(pages[2])
    memory.vacate(pages[2])
    memory.settle(passing)
    passing.memory = "kept"
    memory.check_integrity([*pages, passing])
    assert pages[2].slot is None
    assert memory.passing_bytes == 0
    later = Page(PAGE, None, 0, 8, memory="passing", attention_score=0.8)
    assert memory.place(later, passing=True)
    assert memory.colder(later) is None, "no track has more than this one"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), SIZES, st.integers(0, 2), st.integers(0, 600)), max_size=60))
def test_places(steps: list[tuple[bool, int, int, int]]) -> None:
    """Several pages of one number may have one: those that were dropped keep theirs while they are on their way."""
    places, placed = Places(3 * MiB), list[Page]()
    for taking, size, track, index in steps:
        if taking:
            page = Page(size, None, track, index)
            full = places.length + EXTENT // size * size > 3 * MiB
            try:
                page.place = places.take(page)
                placed.append(page)
            except FlashFull:
                assert full
        elif placed:
            page = placed.pop(index % len(placed))
            assert page.place is not None
            places.release(page.place)
        places.check_integrity(placed)
        assert places.length <= 3 * MiB
    for page in placed:
        assert page.place is not None
        places.release(page.place)
    assert places.used == 0


def test_neighbours_lie_side_by_side() -> None:
    places = Places(None)
    pages = [Page(PAGE, None, 0, index) for index in range(6)]
    for page in pages:
        page.place = places.take(page)
    assert [len(run) for run in runs(pages, 4 * PAGE)] == [4, 2]
    assert [len(run) for run in runs([pages[0], pages[2], pages[3]], 4 * PAGE)] == [1, 2]
    assert [len(run) for run in runs(pages[:2], 1)] == [1, 1]


@pytest.mark.parametrize("most", [PAGE, 3 * PAGE, 100 * PAGE])
def test_runs_leave_nothing_out(most: int) -> None:
    pages = [Page(PAGE, None, 0, index, place=PAGE * (index + index // 5)) for index in range(17)]
    found = runs(pages, most)
    assert [page for run in found for page in run] == pages
    assert all(sum(page.size for page in run) <= most for run in found)


def test_below_a_limit_pages_have_no_place_beyond_it_but_to_pass_or_in_need() -> None:
    memory = PageMemory(40 * PAGE)
    first = [Page(PAGE, None, 0, index) for index in range(12)]
    assert all(memory.place(page, passing=False) for page in first)
    memory.resize(16 * PAGE)
    assert memory.held == 12 * PAGE
    page = Page(PAGE, None, 0, 12)
    assert not memory.place(page, passing=False)
    assert memory.place(page, passing=False, beyond=True)
    assert [memory.place(Page(4 * PAGE, None, 0, 0), passing=True) for _ in range(2)] == [True, False]
    assert memory.held == memory.used == 17 * PAGE


def test_what_has_been_read_stays_where_there_is_room_and_no_track_has_more_than_its_share() -> None:
    memory = PageMemory(16 * PAGE)  # 12 of them to stay
    stayed = []
    for index in range(9):
        page = Page(PAGE, None, 0, index, memory="passing", flash="stored")
        assert memory.place(page, passing=True)
        stayed.append(memory.may_stay(page, tracks=2))
        (memory.settle if stayed[-1] else memory.vacate)(page)
    assert stayed == [True] * 6 + [False] * 3
    assert (memory.kept_bytes, memory.passing_bytes) == (6 * PAGE, 0)
