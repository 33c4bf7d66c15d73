"""Fences, against a list with the mark of each byte."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.kernels.devices.fences import Fences

SIZE = 24

spans = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(
    lambda span: (span[0], min(span[1], SIZE - span[0]))
)


@given(st.lists(st.tuples(st.booleans(), spans), max_size=40))
def test_a_copy_waits_for_what_was_computed_on_its_place_last(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    fences: Fences[int] = Fences()
    behind: list[int | None] = [None] * SIZE
    for mark, (used, (offset, length)) in enumerate(steps):
        inside = slice(offset, offset + length)
        if used:
            fences.used(offset, length, mark)
            behind[inside] = [mark] * length
        else:
            found = fences.before(offset, length)
            assert set(found) == {mark for mark in behind[inside] if mark is not None}
            behind[inside] = [None] * length
    left = fences.before(0, SIZE)
    assert set(left) == {mark for mark in behind if mark is not None}
    assert fences.before(0, SIZE) == [], "waited for once"


def test_marks_do_not_pile_up() -> None:
    fences: Fences[int] = Fences()
    for mark in range(100):
        fences.used(mark % 4 * 8, 8, mark)
    assert fences.before(0, 32) == [96, 97, 98, 99]
