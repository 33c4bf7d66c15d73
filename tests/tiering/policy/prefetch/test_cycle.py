"""The cycle against a walk along it: who reads ahead what, and what goes first."""

from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.prefetch.cycle import Cycle
from penstock.tiering.units import BlockId
from tests.support.rankings import ranking

A, B, C, D, E, F = (BlockId("dense", name) for name in "abcdef")


def forward(cycle: Cycle, stream: int, uses: list[BlockId]) -> None:
    cycle.begin(stream)
    for block in uses:
        cycle.advance(stream, block)
    cycle.end(stream)


def walk(order: tuple[BlockId, ...], position: int, block: BlockId) -> int:
    """Steps from ``position`` to ``block``, around the ring."""
    steps = 0
    while order[(position + steps) % len(order)] != block:
        steps += 1
    return steps


@given(st.integers(1, 6), st.dictionaries(st.integers(1, 3), st.integers(0, 5)))
def test_distance_and_upcoming(count: int, last: dict[int, int]) -> None:
    order = (A, B, C, D, E, F)[:count]
    cycle = Cycle(order)
    positions = []
    for stream, index in last.items():
        cycle.begin(stream)
        cycle.advance(stream, order[index % count])
        positions.append(index % count + 1)
    expected = {block: min(walk(order, position, block) for position in positions or [0]) for block in order}
    assert {block: cycle.distance(block) for block in order} == expected
    upcoming = list(cycle.upcoming())
    assert sorted(upcoming) == sorted(order)
    assert [expected[block] for block in upcoming] == sorted(expected.values())
    for block in order:
        cycle.inserted(block)
    assert [expected[block] for block in ranking(cycle)] == sorted(expected.values(), reverse=True)


def test_upcoming_goes_over_the_token_boundary() -> None:
    cycle = Cycle((A, B, C, D))
    assert list(cycle.upcoming()) == [A, B, C, D]
    cycle.begin(1)
    cycle.advance(1, C)
    assert list(cycle.upcoming()) == [D, A, B, C]
    cycle.advance(1, D)
    assert list(cycle.upcoming()) == [A, B, C, D]
    assert cycle.distance(D) == 3
    cycle.end(1)
    assert list(cycle.upcoming()) == [A, B, C, D]


def test_two_streams_are_served_in_turn() -> None:
    cycle = Cycle((A, B, C, D, E, F))
    cycle.begin(1)
    cycle.begin(2)
    cycle.advance(2, C)
    assert list(cycle.upcoming()) == [A, D, B, E, C, F]
    assert cycle.distance(C) == 2
    cycle.end(2)
    assert cycle.distance(C) == 2
    assert cycle.distance(D) == 3


def test_learns_the_order_of_a_full_forward() -> None:
    cycle = Cycle((A, B, C, D))
    forward(cycle, 1, [B, A, C, D])
    assert cycle.order == (B, A, C, D)
    assert [cycle.distance(block) for block in (B, A, C, D)] == [0, 1, 2, 3]


def test_keeps_the_order_when_a_forward_stops_early_or_skips() -> None:
    cycle = Cycle((A, B, C, D))
    forward(cycle, 1, [A, B])
    forward(cycle, 1, [A, C, D])
    forward(cycle, 1, [])
    assert cycle.order == (A, B, C, D)


def test_blocks_never_used_go_last_and_stay_known() -> None:
    cycle = Cycle((A, B, C, D))
    forward(cycle, 1, [D, B])
    assert cycle.order == (D, B, A, C)
    assert cycle.distance(C) == 3


def test_a_block_used_twice_counts_where_it_is_first() -> None:
    cycle = Cycle((A, B, C))
    forward(cycle, 1, [B, A, B, C])
    assert cycle.order == (B, A, C)


def test_does_not_reorder_under_another_stream() -> None:
    cycle = Cycle((A, B, C))
    cycle.begin(2)
    forward(cycle, 1, [C, B, A])
    assert cycle.order == (A, B, C)
    cycle.advance(2, A)
    assert cycle.distance(B) == 0


def test_uses_outside_of_a_forward_leave_no_position_behind() -> None:
    cycle = Cycle((A, B, C))
    cycle.advance(7, B)
    assert [cycle.distance(block) for block in (A, B, C)] == [0, 1, 2]
    forward(cycle, 1, [C, A, B])
    assert cycle.order == (C, A, B), "a stream that never began must not stop the others from learning"


def test_victims_survive_eviction_while_iterating() -> None:
    cycle = Cycle((A, B, C))
    for block in (A, B, C):
        cycle.inserted(block)
    with closing(cycle.victims()) as victims:
        for block in victims:
            cycle.removed(block)
    assert ranking(cycle) == []


def test_a_block_outside_of_the_order_goes_first() -> None:
    cycle = Cycle((A, B))
    for block in (A, B, C):
        cycle.inserted(block)
    assert ranking(cycle) == [C, B, A]
    assert cycle.distance(C) > cycle.distance(B)


def test_who_leaves_the_cycle_comes_back_to_its_place() -> None:
    cycle = Cycle((A, B, C, D, E, F))
    cycle.leave([B, C, F])
    assert cycle.order == (A, D, E)
    assert B not in cycle
    forward(cycle, 1, [E, D, A])
    assert cycle.order == (E, D, A)
    cycle.join([B, C, F])
    assert cycle.order == (E, F, D, A, B, C), "behind the block that each came after"


@given(st.integers(0, 6), st.sets(st.sampled_from((A, B, C, D, E, F))), st.sets(st.sampled_from((A, B, C, D, E, F))))
def test_a_stream_stays_where_it_is_when_blocks_leave_and_join(
    used: int, first: set[BlockId], second: set[BlockId]
) -> None:
    order = (A, B, C, D, E, F)
    cycle = Cycle(order)
    cycle.begin(1)
    for block in order[:used]:
        cycle.advance(1, block)
    cycle.leave(first)
    cycle.join(second)
    assert cycle.order == tuple(block for block in order if block not in first - second)
    ahead = [block for block in (*order[used:], *order[:used]) if block in cycle.order]
    if first.isdisjoint(order[used : used + 1]):
        assert list(cycle.upcoming()) == ahead


def test_a_block_that_leaves_in_the_middle_of_a_forward_is_not_learned() -> None:
    cycle = Cycle((A, B, C))
    cycle.begin(1)
    for block in (C, B):
        cycle.advance(1, block)
    cycle.leave([C])
    cycle.end(1)
    cycle.join([C])
    assert sorted(cycle.order) == [A, B, C]
