"""What the planner reads of residuals, and when: single cases."""

import pytest

from penstock.tiering.events import Grant, Purpose, Read
from penstock.tiering.planner.regions import RESIDUALS
from penstock.tiering.policy.prefetch.refinement import MOST_READ, PAUSE, Refinement
from penstock.tiering.units import PAGE, BlockId, residuals
from tests.support.worlds.cases import D, X, land_all, reads, watch
from tests.support.worlds.watch import Watch

R = [x.residual(1) for x in X]


def warm(room: int = 10, times: int = 1) -> Watch:
    """Six experts of two pages and their residuals of two, none of these in memory; ``room`` pages for residuals, by
    default not enough for all. The experts were read so many ``times``, which each time allows 4.8 pages of
    residuals."""
    sizes = [size for x, r in zip(X, R, strict=True) for size in ((x, 2), (r, 2))]
    w = watch(*sizes, experts=12, residuals=room, limit=2)
    w.begin(w.streams[1])
    for _ in range(times):
        w.resize({"experts": 0})
        w.resize({"experts": 12 * PAGE})
        take(w, *X)
    return w


def take(w: Watch, *experts: BlockId) -> list[BlockId]:
    """Stream 1 uses ``experts``; all that was leased."""
    one = w.streams[1]
    w.acquire(one, experts)
    land_all(w)
    leased = list(one.held)
    w.release(one, *leased)
    return leased


def expect(w: Watch, *residuals: BlockId) -> list[tuple[BlockId, ...]]:
    """What is read when stream 1 says that these are of use; the reads land."""
    w.expect(w.streams[1], (), (), residuals)
    found = reads(w.log)
    while w.in_flight:
        w.complete(min(w.in_flight))
        found += reads(w.log)
    return found


def test_an_idle_drive_reads_residuals_one_at_a_time_the_first_named_first() -> None:
    w = warm()
    one = w.streams[1]
    w.expect(one, (), (), (R[4], R[1]))
    assert reads(w.log) == [(R[4],)], "the next one waits until the drive has nothing to read"
    w.complete(min(w.in_flight))
    assert reads(w.log) == [(R[1],)]
    land_all(w)
    assert w.planner.counters.refine_bytes == 4 * PAGE
    w.run_out()


def test_demand_comes_first_and_nothing_is_read_beside_it() -> None:
    w = warm()
    one, two = w.streams[1], w.streams[2]
    w.resize({"experts": 0})
    w.resize({"experts": 12 * PAGE})
    assert reads(w.acquire(two, (X[5],))) == [(X[5],)]
    w.expect(one, (), (), (R[0],))
    assert reads(w.log) == []
    w.complete(min(w.in_flight))
    assert reads(w.log) == [(R[0],)]
    w.run_out()


def test_what_is_here_is_leased_with_its_expert() -> None:
    w = warm()
    expect(w, R[2])
    assert take(w, X[2], X[3]) == [X[2], R[2], X[3]]
    one = w.streams[1]
    actions = w.acquire(one, (X[2],))
    assert [grant.leased for grant in actions if isinstance(grant, Grant)] == [(X[2], R[2])]
    with pytest.raises(AssertionError):
        w.planner.residency.evict(R[2])
    w.run_out()


def test_a_plane_is_of_no_use_without_the_one_before() -> None:
    w = watch((X[0], 4), (X[0].residual(1), 2), (X[0].residual(2), 1), experts=4, residuals=3)
    w.begin(w.streams[1])
    for _ in range(3):
        take(w, X[0])
        w.resize({"experts": 0})
        w.resize({"experts": 4 * PAGE})
    take(w, X[0])
    assert expect(w, X[0].residual(2)) == [(X[0].residual(2),)]
    assert take(w, X[0]) == [X[0]]
    assert expect(w, X[0].residual(1)) == [(X[0].residual(1),)]
    assert take(w, X[0]) == [X[0], X[0].residual(1), X[0].residual(2)]
    w.run_out()


def test_no_more_is_read_than_the_share_allows() -> None:
    """Twelve pages of experts were read. With residuals that would have been 24 pages, of which 70 % are 16.8."""
    w = warm()
    assert expect(w, *R) == [(R[0],), (R[1],)]
    assert w.planner.counters.flash_bytes <= MOST_READ * 24 * PAGE
    w.run_out()


def test_with_room_for_all_everything_comes_in_once() -> None:
    w = warm(room=12)
    assert expect(w, *R) == [(r,) for r in R]
    assert take(w, *X) == [block for pair in zip(X, R, strict=True) for block in pair]
    assert expect(w, *R) == []
    w.run_out()


@pytest.mark.parametrize("region", ["experts", RESIDUALS])
def test_the_share_holds_again_once_a_lower_limit_leaves_no_room_for_all(region: str) -> None:
    """What was read before is not made up for: 12 pages of experts allow 4.8 of residuals, as if nothing had been."""
    w = warm(room=12)
    expect(w, *R)
    expect(w)
    w.resize({"experts": 0, RESIDUALS: 0})
    w.resize({"experts": 12 * PAGE, RESIDUALS: 12 * PAGE} | {region: 10 * PAGE})
    take(w, *X[:5])
    take(w, X[5])
    assert expect(w, *R) == [(R[0],), (R[1],)]
    w.run_out()


def test_residuals_make_room_for_each_other_but_not_for_what_is_of_use_now() -> None:
    w = warm(room=4, times=4)
    assert expect(w, R[0], R[1]) == [(R[0],), (R[1],)]
    assert expect(w, R[1], R[2]) == [(R[2],)]
    assert w.planner.residency.slot(R[0]) is None
    assert expect(w, R[1], R[2], R[3]) == [], "all that is here is of use now"
    w.run_out()


def test_the_hottest_stay() -> None:
    w = warm(room=4, times=4)
    for _ in range(3):
        expect(w, R[0])
    expect(w, R[1])
    expect(w, R[2])
    assert R[0] in w.ready
    assert R[1] not in w.ready
    w.run_out()


def test_what_cannot_be_read_is_left_alone_for_a_while_and_counted() -> None:
    w = warm(times=2)
    one = w.streams[1]
    w.expect(one, (), (), (R[0],))
    w.fail(min(w.in_flight))
    assert w.planner.counters.refine_failures == 1
    assert take(w, X[0]) == [X[0]], "it is computed without"
    for _ in range(PAUSE - 1):
        w.end(one)
        w.begin(one)
        assert expect(w, R[0]) == []
    w.end(one)
    w.begin(one)
    assert expect(w, R[0]) == [(R[0],)]
    assert take(w, X[0]) == [X[0], R[0]]
    w.run_out()


def test_a_lower_limit_takes_residuals_and_no_expert_notices() -> None:
    w = warm(times=2)
    assert len(expect(w, *R[:4])) == 4
    w.resize({RESIDUALS: 0})
    assert not any(block.kind == "residual" for block in w.ready)
    assert take(w, *X) == X
    w.run_out()


def test_a_guess_goes_before_a_residual() -> None:
    w = warm()
    w.resize({"experts": 0})
    w.resize({"experts": 12 * PAGE})
    w.expect(w.streams[1], (), (X[0],), (R[0],))
    assert [(read.purpose, read.parts[0].block) for read in w.log if isinstance(read, Read)] == [(Purpose.GUESS, X[0])]
    w.run_out()


def test_experts_in_one_plane_allow_nothing() -> None:
    refinement = Refinement({X[0]: 100})
    refinement.read(X[0], 100)
    assert not refinement.allows(R[0], 1)
    assert refinement.residuals(X[0]) == ()


def test_planes_of_four_bits_leave_a_quarter() -> None:
    refinement = Refinement({X[0]: 45, R[0]: 35})
    refinement.read(X[0], 1000)
    assert refinement.allows(R[0], int(1000 * (MOST_READ * 80 / 45 - 1)))
    assert not refinement.allows(R[0], 251)


def test_residuals_belong_to_experts() -> None:
    other = BlockId("expert", "other", 3)
    blocks = [R[1], other.residual(2), X[1], D[0], other.residual(1)]
    assert residuals(blocks) == {X[1]: (R[1],), other: (other.residual(1), other.residual(2))}
