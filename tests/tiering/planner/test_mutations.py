"""Bugs put into the planner on purpose: each must be found by the random worlds, or by the state machine, within the
examples that these go through anyway."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from penstock.tiering.events import Acquire, Action, Discard, Event, Grant, Purpose, ReadDone, ReadFailed, Refuse, Slot
from penstock.tiering.planner.inflight import InFlight
from penstock.tiering.planner.planner import Planner
from penstock.tiering.planner.regions import EXPERTS, Limits
from penstock.tiering.planner.residency import Residency
from penstock.tiering.planner.scheduling import Scheduler
from penstock.tiering.policy.prefetch.cycle import Cycle
from penstock.tiering.policy.prefetch.refinement import Refinement
from penstock.tiering.units import BlockId
from tests.support.worlds.runs import WORLDS, random_run
from tests.tiering.planner import test_planner

Patch = pytest.MonkeyPatch


def a_lease_is_ignored(patch: Patch) -> None:
    """What is leased may be evicted."""
    patch.setattr(Residency, "evictable", lambda self, block: block in self._slots and block not in self._loading)


def a_budget_is_exceeded_by_one_block(patch: Patch) -> None:
    """The cache of experts has room for one more."""
    real = Planner.__init__

    def init(self: Planner, residency: Residency, homes: Any, **options: Any) -> None:
        capacities = {name: region.capacity for name, region in residency.regions.items()}
        experts = [home.extent.length for home in homes.values() if home.region == EXPERTS]
        capacities[EXPERTS] += max(experts, default=0)
        real(self, Residency("host", capacities), homes, **options)

    patch.setattr(Planner, "__init__", init)


def a_request_is_never_granted(patch: Patch) -> None:
    """Of several who wait for a block, the last one is forgotten."""

    def forget(planner: Planner, event: Event, actions: list[Action]) -> list[Action]:
        granted = [action for action in actions if isinstance(action, Grant)]
        if isinstance(event, ReadDone) and len({grant.ticket for grant in granted}) > 1:
            actions.remove(granted[-1])
        return actions

    _after(patch, forget)


def a_failure_is_not_told(patch: Patch) -> None:
    """Who waits for a read that fails goes on waiting."""

    def keep(planner: Planner, event: Event, actions: list[Action]) -> list[Action]:
        return [a for a in actions if not (isinstance(event, ReadFailed) and isinstance(a, Refuse))]

    _after(patch, keep)


def a_discard_is_left_out(patch: Patch) -> None:
    """Memory beyond a limit is not given back."""
    _after(patch, lambda planner, event, actions: [a for a in actions if not isinstance(a, Discard)])


def a_prefetch_evicts_what_is_needed_sooner(patch: Patch) -> None:
    """Distances have the wrong sign."""
    real = Cycle.distance
    patch.setattr(Cycle, "distance", lambda self, block: -real(self, block))


def a_grant_without_a_lease(patch: Patch) -> None:
    """Who gets a block is not written down as its holder."""

    def grant(self: Planner, number: int, stream: int, block: BlockId, slot: Slot, actions: list[Action]) -> None:
        actions.append(Grant(number, block, slot))

    patch.setattr(Planner, "_grant", grant)


def one_more_read_in_flight(patch: Patch) -> None:
    """A drive gets one read more than it may have."""
    patch.setattr(InFlight, "is_busy", lambda self, drive: self._counts[drive] > self.depth)
    patch.setattr(InFlight, "has_room", property(lambda self: min(self._counts) <= self.depth))


def guesses_before_demands(patch: Patch) -> None:
    """A guess is read though somebody waits."""
    real = Scheduler._issue

    def issue(self: Scheduler, blocks: Iterable[BlockId], actions: list[Action], now: float, purpose: Purpose) -> None:
        if purpose is Purpose.DEMAND and self._expectations:
            real(self, self._unread(self._expectations.of(Purpose.GUESS)), actions, now, Purpose.GUESS)
        real(self, blocks, actions, now, purpose)

    patch.setattr(Scheduler, "_issue", issue)


def a_limit_is_ignored(patch: Patch) -> None:
    """Room beyond the limit of a region is given away."""
    patch.setattr(Limits, "reserve", Limits.overdraw)


def room_is_left_unused(patch: Patch) -> None:
    """What a release makes room for is not read."""
    real, handle = Scheduler.schedule, Planner.handle
    latest: list[Event] = []

    def schedule(self: Scheduler, actions: list[Action], now: float) -> None:
        if not self._in_flight.reads or isinstance(latest[-1], Acquire | ReadDone):
            real(self, actions, now)

    def note(self: Planner, event: Event, now: float) -> list[Action]:
        latest[:] = [event]
        return handle(self, event, now)

    patch.setattr(Planner, "handle", note)
    patch.setattr(Scheduler, "schedule", schedule)


def residuals_without_bound(patch: Patch) -> None:
    """Whatever is of use is read as long as there is time."""
    patch.setattr(Refinement, "allows", lambda self, block, size: True)


def residuals_beside_other_reads(patch: Patch) -> None:
    """A residual is read though the drive is at work."""
    patch.setattr(InFlight, "is_idle", lambda self, drive: not self.is_busy(drive))


def residuals_are_not_leased(patch: Patch) -> None:
    """Who computes with a residual does not hold it."""
    real = Planner._grant

    def grant(self: Planner, number: int, stream: int, block: BlockId, slot: Slot, actions: list[Action]) -> None:
        real(self, number, stream, block, slot, actions)
        for residual in actions[-1].leased[1:]:  # type: ignore[union-attr]
            self.residency.release(residual, stream)

    patch.setattr(Planner, "_grant", grant)


FOUND: dict[Callable[[Patch], None], str] = {
    a_lease_is_ignored: "evicted under a lease",
    a_budget_is_exceeded_by_one_block: "outside of its region",
    a_request_is_never_granted: "holds something else than it was granted",
    a_failure_is_not_told: "demand before prefetch",
    a_discard_is_left_out: "memory beyond the limit that nobody uses",
    a_prefetch_evicts_what_is_needed_sooner: "evicted what is needed sooner",
    a_grant_without_a_lease: "evicted under a lease",
    one_more_read_in_flight: "more reads in flight than there may be",
    guesses_before_demands: "demand before prefetch",
    a_limit_is_ignored: "a prefetch beyond the limit",
    room_is_left_unused: "somebody waits, there is room",
    residuals_without_bound: "more residuals than allowed",
    residuals_beside_other_reads: "beside a read",
    residuals_are_not_leased: "holds something else than it was granted",
}
"""The bugs, and by which rule each is found first."""
NAMED = tuple(FOUND)[:3]


def _after(patch: Patch, change: Callable[[Planner, Event, list[Action]], list[Action]]) -> None:
    """``change`` the actions of every event."""
    real = Planner.handle
    patch.setattr(Planner, "handle", lambda self, event, now: change(self, event, real(self, event, now)))


@pytest.mark.parametrize("mutant", FOUND, ids=lambda mutant: mutant.__name__)
def test_random_worlds_find(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError, match=FOUND[mutant]):
        all(random_run(seed).watched() for seed in range(WORLDS))


@pytest.mark.parametrize("mutant", NAMED, ids=lambda mutant: mutant.__name__)
def test_the_state_machine_finds(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    usual = test_planner.TestPlanner.settings
    again = settings(usual, derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(test_planner.PlannerMachine, settings=again)
