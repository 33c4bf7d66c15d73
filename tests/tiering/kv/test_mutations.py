"""Bugs put into the KV planner on purpose: each must be found by the random runs that it goes through anyway."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from penstock.tiering.events import Discard, Refuse
from penstock.tiering.kv.books import PageBooks
from penstock.tiering.kv.device_pages import DevicePages
from penstock.tiering.kv.events import FetchPages, HoldPages, KVAction, KVEvent, PagesRead, ReadPages, Wake
from penstock.tiering.kv.evicting import PageRoom
from penstock.tiering.kv.extents import Places
from penstock.tiering.kv.memory import PageMemory
from penstock.tiering.kv.pages import Page
from penstock.tiering.kv.planner import KVPlanner
from penstock.tiering.units import PAGE
from tests.support.kv_runs import RUNS, random_kv_run

Patch = pytest.MonkeyPatch


def a_use_is_ignored(patch: Patch) -> None:
    """What is held may leave memory."""
    patch.setattr(Page, "evictable", property(lambda page: page.memory == "kept"))
    patch.setattr(PageMemory, "vacate", lambda self, page: self._give_back(page, passing=page.passing))


def what_is_not_written_leaves(patch: Patch) -> None:
    """A page leaves memory before its bytes are on flash."""

    def evict_one(self: PageRoom) -> bool:
        for page in self._memory.victims():
            self._memory.forget(page)
            self._books._vacate(page)
            page.memory = "absent"
            return True
        return False

    patch.setattr(PageRoom, "evict_one", evict_one)


def the_ring_has_room_for_one_more(patch: Patch) -> None:
    """More passes through than there is room for."""
    real = PageMemory.place

    def place(self: PageMemory, page: Page, *, passing: bool, beyond: bool = False) -> bool:
        self.ring += 2 * page.size
        try:
            return real(self, page, passing=passing, beyond=beyond)
        finally:
            self.ring -= 2 * page.size

    patch.setattr(PageMemory, "place", place)


def who_waits_is_forgotten(patch: Patch) -> None:
    """Of two who fetch a page only the first is answered."""

    def first(planner: KVPlanner, event: KVEvent, actions: list[KVAction]) -> list[KVAction]:
        woken = [action for action in actions if isinstance(action, Wake)]
        return [each for each in actions if not (isinstance(event, PagesRead) and each in woken[1:])]

    _after(patch, first)


def a_failure_is_not_told(patch: Patch) -> None:
    """Who fetches what cannot be read goes on waiting."""

    def keep(planner: KVPlanner, event: KVEvent, actions: list[KVAction]) -> list[KVAction]:
        return [each for each in actions if not (isinstance(event, PagesRead) and isinstance(each, Refuse))]

    _after(patch, keep)


def a_failure_is_taken_for_success(patch: Patch) -> None:
    """Pages that could not be read are computed on."""
    real = PageBooks.land
    patch.setattr(PageBooks, "land", lambda self, read, error: real(self, read, None))


def a_discard_is_left_out(patch: Patch) -> None:
    """Memory beyond the limit is not given back."""
    _after(patch, lambda planner, event, actions: [each for each in actions if not isinstance(each, Discard)])


def too_much_is_discarded(patch: Patch) -> None:
    """The memory of the page before is given back, too."""

    def widen(planner: KVPlanner, event: KVEvent, actions: list[KVAction]) -> list[KVAction]:
        return [_wider(each) if isinstance(each, Discard) else each for each in actions]

    _after(patch, widen)


def _wider(discard: Discard) -> Discard:
    return Discard(discard.offset - 2 * PAGE, discard.length + 2 * PAGE)


def what_is_shared_goes_with_the_first(patch: Patch) -> None:
    """A page that two tables have is freed when one drops it."""

    def drop(self: KVPlanner, pages: Sequence[Page]) -> None:
        for page in pages:
            page.refs = 0
            if not page.leases and page.memory != "coming":
                self.books.free(page)

    patch.setattr(KVPlanner, "_drop", drop)


def a_place_is_given_away_while_it_is_read(patch: Patch) -> None:
    """What is dropped while it is read gives its place back at once."""
    real = KVPlanner._drop

    def drop(self: KVPlanner, pages: Sequence[Page]) -> None:
        real(self, pages)
        for page in pages:
            if page.memory == "coming" and not page.refs and page.place is not None:
                self.books.places.release(page.place)

    patch.setattr(KVPlanner, "_drop", drop)


def a_place_is_lost(patch: Patch) -> None:
    """Where a write failed, the place on flash is not given back."""
    patch.setattr(Places, "release", lambda self, place: None)


def a_use_is_counted_twice(patch: Patch) -> None:
    """Who holds pages has two uses of each."""

    def hold(self: KVPlanner, event: HoldPages) -> None:
        real(self, event)
        if isinstance(event, HoldPages):
            self.books.lease(self._actions[-1].pages)  # type: ignore[union-attr]

    real = KVPlanner._take
    patch.setattr(KVPlanner, "_take", hold)


def what_is_on_its_way_is_held(patch: Patch) -> None:
    """Somebody computes on a page that the drive still fills."""
    here = frozenset(("open", "kept", "passing", "coming", "read"))
    patch.setattr("penstock.tiering.kv.planner._HERE", here)


def a_page_is_read_twice(patch: Patch) -> None:
    """Who fetches a page that is on its way has it read once more."""

    def again(planner: KVPlanner, event: KVEvent, actions: list[KVAction]) -> list[KVAction]:
        if isinstance(event, FetchPages):
            coming = [page for page in event.pages if page.memory == "coming"]
            begun = [page for each in actions if isinstance(each, ReadPages) for page in each.pages]
            more = [page for page in coming if page not in begun]
            return [*actions, *(ReadPages(10**6, page.place or 0, [page]) for page in more)]
        return actions

    _after(patch, again)


def what_lies_beyond_the_limit_stays(patch: Patch) -> None:
    """Nobody makes pages leave the memory beyond the limit."""
    patch.setattr(PageRoom, "retreat", lambda self: None)


def who_waits_is_not_tried_again(patch: Patch) -> None:
    """Room that was made is not given to who waits for it."""
    real = KVPlanner._attempt

    def attempt(self: KVPlanner, request: Any) -> bool:
        return request.ticket not in self._waiting and real(self, request)

    patch.setattr(KVPlanner, "_attempt", attempt)


def the_queue_is_not_written(patch: Patch) -> None:
    """After a write the next one does not begin."""
    real = KVPlanner._write

    def write(self: KVPlanner) -> None:
        if self.books.writes.number < 2:
            real(self)

    patch.setattr(KVPlanner, "_write", write)


def what_was_reserved_is_not_given_back(patch: Patch) -> None:
    """Who is refused has the memory all the same."""
    patch.setattr(KVPlanner, "_forget", lambda self, request: None)


def a_copy_that_has_not_landed_is_shown(patch: Patch) -> None:
    """The device computes on a copy that is under way."""
    real = DevicePages.give_room

    def give_room(self: DevicePages, keys: Page, values: Page, *, newer: int = 0) -> Any:
        if (pair := real(self, keys, values, newer=newer)) is not None:
            self.landed(keys)
        return pair

    patch.setattr(DevicePages, "give_room", give_room)


def a_copy_holds_nothing(patch: Patch) -> None:
    """Pages may leave memory while they are copied to the device."""
    real = KVPlanner._offer

    def offer(self: KVPlanner, event: Any) -> None:
        before = len(self._actions)
        real(self, event)
        if len(self._actions) > before:
            self.books.held -= 2
            for page in (event.keys, event.values):
                page.leases -= 1

    patch.setattr(KVPlanner, "_offer", offer)


FOUND: dict[Callable[[Patch], None], str] = {
    a_use_is_ignored: "left memory while it was used",
    what_is_not_written_leaves: "its bytes are nowhere",
    the_ring_has_room_for_one_more: "more passes than the ring has room for",
    who_waits_is_forgotten: "somebody waits, and nothing is under way",
    a_failure_is_not_told: "somebody waits, and nothing is under way",
    a_failure_is_taken_for_success: "other bytes lie in its slot",
    a_discard_is_left_out: "memory beyond the limit that nobody uses was not given back",
    too_much_is_discarded: "memory of a page that is there was given back",
    what_is_shared_goes_with_the_first: "freed too early, or too late",
    a_place_is_given_away_while_it_is_read: "places and pages do not agree",
    a_place_is_lost: "places and pages do not agree",
    a_use_is_counted_twice: "leases that nobody has",
    what_is_on_its_way_is_held: "held something else than what is in memory",
    a_page_is_read_twice: "read twice",
    what_lies_beyond_the_limit_stays: "could have left the memory beyond the limit",
    who_waits_is_not_tried_again: "somebody waits, and nothing is under way",
    the_queue_is_not_written: "the drive could write",
    what_was_reserved_is_not_given_back: "reserved by nobody",
    a_copy_that_has_not_landed_is_shown: "shows what has not been copied",
    a_copy_holds_nothing: "copied without being held",
}
"""The bugs, and by which rule each is found first."""


def _after(patch: Patch, change: Callable[[KVPlanner, KVEvent, list[KVAction]], list[KVAction]]) -> None:
    """``change`` the actions of every event."""
    real = KVPlanner.handle
    patch.setattr(KVPlanner, "handle", lambda self, event: change(self, event, real(self, event)))


@pytest.mark.parametrize("mutant", FOUND, ids=lambda mutant: mutant.__name__)
def test_random_runs_find(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError, match=FOUND[mutant]):
        all(random_kv_run(seed) for seed in range(RUNS))
