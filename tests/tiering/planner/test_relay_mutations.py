"""Bugs put into the relay, and into what the planner knows of it, on purpose: each must be found in the worlds of three
tiers that the tests go through anyway."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from penstock.tiering.events import COPY_STREAM, Refuse, Release
from penstock.tiering.planner import scheduling
from penstock.tiering.planner.relay import Copy, Landed, Relay
from penstock.tiering.planner.residency import Residency
from tests.support.worlds.lifted import Run
from tests.tiering.planner.test_relayed_worlds import WORLDS

Patch = pytest.MonkeyPatch


def what_was_copied_is_kept(patch: Patch) -> None:
    """Nothing is given back below."""
    real = Relay.copied

    def copied(self: Relay, copy: Copy, error: Exception | None) -> tuple[Release, list[Landed]]:
        release, landed = real(self, copy, error)
        return Release(release.stream, ()), landed

    patch.setattr(Relay, "copied", copied)


def residuals_are_kept(patch: Patch) -> None:
    """What is leased along with an expert is not given back with it."""
    real = Relay.granted
    patch.setattr(Relay, "granted", lambda self, grant: replace(real(self, grant), leased=(grant.block,)))


def a_refusal_is_not_passed_on(patch: Patch) -> None:
    """The read above is forgotten without a word."""
    real = Relay.refused

    def refused(self: Relay, refusal: Refuse) -> list[Landed]:
        real(self, refusal)
        return []

    patch.setattr(Relay, "refused", refused)


def an_error_is_forgotten(patch: Patch) -> None:
    """A read that failed has landed well."""
    real = Relay._end
    patch.setattr(Relay, "_end", lambda self, ticket: [Landed(end.ticket, None) for end in real(self, ticket)])


def the_copier_holds_up_itself(patch: Patch) -> None:
    """The planner takes it for a stream that keeps what it has while it waits."""
    patch.setattr(scheduling, "COPY_STREAM", None)


def what_is_copied_is_evicted(patch: Patch) -> None:
    """The lease for a copy is ignored."""
    real = Residency.evictable
    patch.setattr(Residency, "evictable", lambda self, block: real(self, block) or block in self.held(COPY_STREAM))


FOUND: dict[Callable[[Patch], None], str] = {
    what_was_copied_is_kept: "a read above never lands",
    residuals_are_kept: "left leased below",
    a_refusal_is_not_passed_on: "a read above never lands",
    an_error_is_forgotten: "granted, and other bytes are there",
    the_copier_holds_up_itself: "refused below, and nothing is wrong",
    what_is_copied_is_evicted: "below under a lease",
}
"""The bugs, and by which rule each is found first."""


@pytest.mark.parametrize("mutant", FOUND, ids=lambda mutant: mutant.__name__)
def test_worlds_of_three_tiers_find(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError, match=FOUND[mutant]):
        all(Run(seed).go() for seed in range(WORLDS))
