"""Policies that are no ranking by one number, and what chooses among policies."""

import random
from collections.abc import Callable, Iterator

import pytest

from penstock.tiering.policy.eviction import EVICTION, Eviction
from penstock.tiering.policy.eviction.arc import ARC
from penstock.tiering.policy.eviction.auto import Auto
from penstock.tiering.policy.eviction.belady import Belady
from penstock.tiering.policy.eviction.lfu import LFU
from penstock.tiering.policy.eviction.lru import LRU
from penstock.tiering.policy.eviction.next_use import NextUse
from penstock.tiering.policy.eviction.shadow import Shadow
from penstock.tiering.policy.eviction.succinct import Rare, Succinct
from penstock.tiering.policy.prefetch.route import Route
from penstock.tiering.units import BlockId
from tests.support.rankings import BLOCKS, ranking


def play(policy: Eviction, room: int, uses: str) -> str:
    """Which of ``uses``, letters in one layer each, are hits."""
    cache = Shadow(policy, room)
    return "".join(use for use in uses if not cache.use([BlockId("expert", use)]))


def test_arc_keeps_what_is_used_again_from_a_scan() -> None:
    assert play(ARC(), 3, "abab" + "uvwxyz" + "ab") == "ab" + "ab"
    assert play(LRU(), 3, "abab" + "uvwxyz" + "ab") == "ab"


def test_arc_lengthens_the_list_that_is_missed_in() -> None:
    policy = ARC()
    play(policy, 2, "aabb" + "cd" + "c")
    assert policy._target > 0
    play(policy, 2, "ab")
    assert policy._target == 0


def test_discards_go_first_and_the_rest_by_recency() -> None:
    class Vowels:
        def discard(self, block: BlockId) -> bool:
            return block.module in "aeiou"

        def tick(self, resident: int) -> None:
            """They stay vowels."""

    policy = Succinct(Vowels())
    for letter in "babeci":
        block = BlockId("expert", letter)
        policy.used([block])
        if letter not in {block.module for block in ranking(policy)}:
            policy.inserted(block)
    assert "".join(block.module for block in ranking(policy)) == "aeibc"


def test_rare_are_those_beyond_what_fits() -> None:
    rare = Rare(decay=0.5)
    a, b, c, d = BLOCKS[:4]
    for block in (a, a, a, a, b, b, b, c):
        rare.discard(block)
    rare.tick(resident=2)
    assert [rare.discard(block) for block in (a, b, d)] == [False, False, True]
    rare.tick(resident=9)
    assert not rare.discard(d), "everything fits"


def test_belady_hits_more_than_any_other_can() -> None:
    uses = "abcabdabeabfcdef" * 3
    best = len(play(Belady(BlockId("expert", use) for use in uses), 3, uses))
    for name, make in EVICTION.items():
        assert len(play(make(Route(uses)), 3, uses)) <= best, name
    assert best > len(play(LRU(), 3, uses))


def drive(policy: Eviction, room: int, forwards: int, seed: int, route: Route) -> float:
    """The hit ratio, after some forwards, of four layers of eight experts of which each uses two, some more often."""
    cache, choose, hits = Shadow(policy, room), random.Random(seed), 0
    for forward in range(forwards):
        policy.tick()
        route.begin(1)
        for layer in "abcd":
            route.reach(1, layer)
            wanted = [BlockId("expert", layer, part) for part in {min(7, int(choose.expovariate(0.4))) for _ in "12"}]
            absent = cache.use(wanted)
            if forward >= forwards // 3:
                hits += len(wanted) - len(absent)
        route.end(1)
    return hits / (forwards - forwards // 3)


class Inverted(NextUse):
    """Every prediction wrong."""

    def victims(self) -> Iterator[BlockId]:  # type: ignore[override]
        yield from reversed(list(super().victims()))


@pytest.mark.parametrize("room", [8, 12, 20])
def test_auto_follows_good_predictions_and_leaves_bad_ones(room: int) -> None:
    def run(make: Callable[[Route], Eviction]) -> tuple[float, Eviction]:
        route = Route("abcd")
        policy = make(route)
        return drive(policy, room, 300, 1, route), policy

    lru, _ = run(lambda route: LRU())
    good, _ = run(NextUse)
    bad, _ = run(Inverted)
    chosen, auto = run(lambda route: Auto([lambda: NextUse(route), LRU]))
    warned, wary = run(lambda route: Auto([lambda: Inverted(route), LRU]))
    assert good > lru > bad
    assert chosen == good
    assert auto.name == "next-use"
    assert warned >= 0.95 * lru
    assert wary.name == "lru"


def test_auto_needs_no_shadows_while_everything_fits() -> None:
    policy = Auto([LRU, LFU])
    for _ in range(3):
        policy.tick()
        policy.used(BLOCKS)
        for block in BLOCKS:
            if block not in policy._resident:
                policy.inserted(block)
    assert not policy._full
    assert not any(shadow._resident for shadow in policy._shadows)


def test_auto_bears_a_cache_that_guesses_filled_before_anything_was_used() -> None:
    policy = Auto([LRU, LFU])
    policy.inserted(BLOCKS[0])
    assert ranking(policy) == BLOCKS[:1]
    policy.tick()
    policy.used(BLOCKS[:1])
    assert ranking(policy) == BLOCKS[:1]
