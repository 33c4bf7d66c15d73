"""The free list against a set of free pages."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.tiering.planner.freelist import FreeList
from penstock.tiering.units import PAGE


class FreeListMachine(RuleBasedStateMachine):
    @initialize(start=st.integers(0, 5), length=st.integers(0, 24))
    def build(self, start: int, length: int) -> None:
        self.free = set(range(start, start + length))
        self.taken: list[tuple[int, int]] = []
        self.list = FreeList(start * PAGE, length * PAGE)

    def first_fit(self, pages: int) -> int | None:
        return next((p for p in sorted(self.free) if self.free >= set(range(p, p + pages))), None)

    @rule(pages=st.integers(1, 9))
    def allocate(self, pages: int) -> None:
        expected = self.first_fit(pages)
        offset = self.list.allocate(pages * PAGE)
        assert offset == (None if expected is None else expected * PAGE)
        if expected is not None:
            self.free -= set(range(expected, expected + pages))
            self.taken.append((expected, pages))

    @rule(pages=st.integers(1, 9), below=st.integers(0, 30))
    def allocate_below(self, pages: int, below: int) -> None:
        expected = self.first_fit(pages)
        if expected is not None and expected + pages > below:
            expected = None
        offset = self.list.allocate(pages * PAGE, below=below * PAGE)
        assert offset == (None if expected is None else expected * PAGE)
        if expected is not None:
            self.free -= set(range(expected, expected + pages))
            self.taken.append((expected, pages))

    @precondition(lambda self: self.free)
    @rule(data=st.data(), pages=st.integers(1, 4))
    def take(self, data: st.DataObject, pages: int) -> None:
        page = data.draw(st.sampled_from(sorted(self.free)))
        wanted = set(range(page, page + pages))
        if self.free >= wanted:
            self.list.take(page * PAGE, pages * PAGE)
            self.free -= wanted
            self.taken.append((page, pages))
        else:
            with pytest.raises(AssertionError):
                self.list.take(page * PAGE, pages * PAGE)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        page, pages = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.list.release(page * PAGE, pages * PAGE)
        self.free |= set(range(page, page + pages))

    @invariant()
    def holes_are_the_free_pages(self) -> None:
        holes = self.list.holes()
        pages = [p for offset, length in holes for p in range(offset // PAGE, (offset + length) // PAGE)]
        assert pages == sorted(self.free)
        assert self.list.free_bytes == len(self.free) * PAGE
        assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(holes)), "neighbouring holes not merged"


TestFreeList = FreeListMachine.TestCase
TestFreeList.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
