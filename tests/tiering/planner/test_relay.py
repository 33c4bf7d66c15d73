"""The relay: every read lands once, when nothing is copied for it any more; every lease is given back once."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.events import COPY_STREAM, Acquire, Begin, Event, Grant, Part, Refuse, Slot
from penstock.tiering.planner.regions import EXPERTS, STREAM, Home
from penstock.tiering.planner.relay import Copy, Landed, Relay, order_of
from penstock.tiering.units import PAGE, BlockId, Extent

DENSE = [BlockId("dense", f"layer.{n}") for n in range(6)]
EXPERT = [BlockId("expert", "mlp", n) for n in range(4)]


def part(block: BlockId, place: int = 0) -> Part:
    return Part(block, Extent(0, 0, PAGE), Slot(STREAM, place * PAGE, PAGE))


def grant(ticket: int, block: BlockId, residuals: int = 0) -> Grant:
    return Grant(ticket, block, Slot(STREAM, 0, PAGE), (Slot(STREAM, PAGE, PAGE),) * residuals)


def begins(events: list[Event]) -> bool:
    return Begin(COPY_STREAM) in events


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_every_read_lands_once_and_every_lease_is_given_back(sizes: list[int], dice: random.Random) -> None:
    """Grants, refusals and ends of copies in any order, well or not."""
    relay = Relay(DENSE)
    wanted: dict[int, list[BlockId]] = {}
    for ticket, size in enumerate(sizes):
        blocks = dice.sample(DENSE + EXPERT, size)
        events = relay.start(ticket, [part(block) for block in blocks])
        assert events[-1] == Acquire(ticket, COPY_STREAM, tuple(blocks))
        wanted[ticket] = blocks
    copies: list[Copy] = []
    leased, given_back = Counter[BlockId](), Counter[BlockId]()
    failed: dict[int, Exception] = {}
    landed: list[Landed] = []
    while any(wanted.values()) or copies:
        ticket = dice.choice(sorted(wanted))
        ends: list[Landed] = []
        if wanted[ticket] and dice.random() < 0.2:
            wanted[ticket].clear()
            error: Exception | None = OSError("refused")
            ends = relay.refused(Refuse(ticket, error))
            failed.setdefault(ticket, error)
        elif wanted[ticket]:
            block = wanted[ticket].pop(dice.randrange(len(wanted[ticket])))
            copy = relay.granted(grant(ticket, block, residuals=dice.randint(0, 2) if block.kind == "expert" else 0))
            assert copy.part == part(block)
            leased.update(copy.leased)
            copies.append(copy)
        elif copies:
            copy = copies.pop(0)
            error = OSError("not copied") if dice.random() < 0.2 else None
            release, ends = relay.copied(copy, error)
            assert release.stream == COPY_STREAM
            given_back.update(release.blocks)
            if error is not None:
                failed.setdefault(copy.ticket, error)
        for end in ends:
            assert not wanted[end.ticket], "landed, and something is still to come"
            assert all(copy.ticket != end.ticket for copy in copies), "landed, and something is still copied"
            assert end.error is failed.get(end.ticket)
        landed += ends
    assert sorted(end.ticket for end in landed) == sorted(wanted)
    assert leased == given_back


def test_residuals_that_came_along_are_given_back() -> None:
    relay = Relay([])
    relay.start(1, [part(EXPERT[0])])
    release, _ = relay.copied(relay.granted(grant(1, EXPERT[0], residuals=2)), None)
    assert release.blocks == (EXPERT[0], EXPERT[0].residual(1), EXPERT[0].residual(2))


def test_the_order_begins_anew_with_each_pass() -> None:
    relay = Relay(DENSE)
    found = [begins(relay.start(n, [part(block)])) for n, block in enumerate([*DENSE, *DENSE[2:], DENSE[0]])]
    assert found == [True, *[False] * 5, True, *[False] * 3, True]
    assert relay.begin() == [], "copies run ahead of tokens: where there is an order, it says when one begins"


def test_one_block_is_a_pass() -> None:
    relay = Relay(DENSE[:1])
    assert [begins(relay.start(n, [part(DENSE[0])])) for n in range(3)] == [True] * 3


def test_experts_have_no_order() -> None:
    relay = Relay(DENSE)
    assert begins(relay.start(0, [part(DENSE[4])]))
    assert not begins(relay.start(1, [part(EXPERT[0])]))
    assert not begins(relay.start(2, [part(DENSE[5])]))


def test_where_there_is_no_order_tokens_begin_passes() -> None:
    relay = Relay([])
    assert relay.begin() == [Begin(COPY_STREAM)]
    assert not begins(relay.start(0, [part(EXPERT[0])]))


def test_the_order_is_that_of_the_dense_blocks() -> None:
    extent = Extent(0, 0, PAGE)
    homes = {DENSE[1]: Home(extent, STREAM), EXPERT[0]: Home(extent, EXPERTS), DENSE[0]: Home(extent, STREAM)}
    assert order_of(homes) == [DENSE[1], DENSE[0]]
