"""Which format a page of keys and values gets when it is no longer recent."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.kv.selection.kv_precision import AS_IS, COARSE, FINE, ScoredPage, Window, assign_formats

windows = st.builds(Window, page=st.sampled_from([16, 64, 256]), first=st.integers(0, 3), recent=st.integers(0, 600))
shares = st.integers(0, 16).map(lambda sixteenths: sixteenths / 16)
masses = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=60)


def grown(masses: list[float], window: Window, share: float, step: int = 1) -> list[ScoredPage]:
    """The pages of a sequence that grew by ``step`` pages at a time, encoded as they left the window."""
    pages: list[ScoredPage] = []
    for start in range(0, len(masses), step):
        pages += [ScoredPage(mass=mass) for mass in masses[start : start + step]]
        for number, chosen in assign_formats(pages, len(pages) * window.page, window=window, fine_share=share).items():
            assert pages[number].format == AS_IS, "a page is encoded once"
            pages[number] = dataclasses.replace(pages[number], format=chosen)
    return pages


@given(masses, windows, shares, st.integers(1, 70))
def test_all_outside_the_window_are_encoded_and_no_others(masses, window, share, step):
    formats = [page.format for page in grown(masses, window, share, step)]
    outside = window.leaving(len(formats) * window.page)
    for number, chosen in enumerate(formats):
        behind = (len(formats) - 1 - number) * window.page
        assert (number in outside) == (number >= window.first and behind >= window.recent)
        assert (chosen != AS_IS) == (number in outside)


@given(masses, windows, shares, st.integers(1, 70))
def test_int8_never_takes_more_than_its_share(masses, window, share, step):
    pages = grown(masses, window, share, step)
    assert sum(page.format == FINE for page in pages) <= share * sum(page.format != AS_IS for page in pages)


@given(masses, windows, shares)
def test_of_pages_that_leave_together_the_most_important_are_int8(masses, window, share):
    pages = grown(masses, window, share, step=len(masses))
    fine = [page.mass for page in pages if page.format == FINE]
    coarse = [page.mass for page in pages if page.format == COARSE]
    assert len(fine) == int(share * len(fine + coarse))
    assert min(fine, default=9) >= max(coarse, default=0)


def test_importance_is_mass_for_each_query():
    old, new = ScoredPage(mass=30.0, age=100), ScoredPage(mass=20.0, age=10)
    window = Window(page=16, first=0, recent=0)
    assert assign_formats([old, new], 32, window=window, fine_share=0.5) == {0: COARSE, 1: FINE}


def test_a_page_that_cannot_be_encoded_stays_and_takes_no_share():
    pages = [ScoredPage(mass=9.0, encodable=False), ScoredPage(mass=1.0), ScoredPage(mass=2.0)]
    assert assign_formats(pages, 48, window=Window(page=16, first=0, recent=0), fine_share=0.5) == {1: COARSE, 2: FINE}


def test_a_page_is_int4_where_more_important_ones_left_before():
    pages = [
        ScoredPage(FINE, mass=9.0),
        ScoredPage(COARSE, mass=1.0),
        ScoredPage(COARSE, mass=1.0),
        ScoredPage(mass=5.0),
    ]
    window = Window(page=16, first=0, recent=0)
    assert assign_formats(pages, 64, window=window, fine_share=0.5) == {3: FINE}
    assert assign_formats(pages, 64, window=window, fine_share=0.25) == {3: COARSE}


def test_a_page_less_important_than_those_in_int4_is_int4_too():
    pages = [ScoredPage(COARSE, mass=9.0), ScoredPage(mass=1.0)]
    assert assign_formats(pages, 32, window=Window(page=16, first=0, recent=0), fine_share=0.5) == {1: COARSE}
