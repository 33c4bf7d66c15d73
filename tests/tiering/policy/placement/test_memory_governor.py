"""How much memory to take, on a simulated machine on which other programs take memory and give it back."""

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.placement.memory_governor import Governor, low_mark
from penstock.tiering.units import GiB, MiB

TICK = 0.2


@dataclass
class World:
    """A machine of ``total`` bytes; we fill what we are allowed at ``fill`` bytes a second, and give back at once.

    Others ``want`` memory and take it as fast as it is there.
    """

    elastic: Governor
    total: int
    want: int = 0
    others: int = 0
    held: int = 0
    fill: int = GiB
    now: float = 0.0
    limits: list[int] = field(default_factory=list)

    @property
    def available(self) -> int:
        return self.total - self.others - self.held

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self.others = min(self.want, self.total - self.held)
            room = min(int(self.fill * TICK), self.available)
            self.held = min(self.elastic.limit, self.held + room)
            before = self.elastic.limit
            limit = self.elastic.advise(self.now, self.available, self.total, self.elastic.limit - self.held)
            self.limits.append(limit)
            assert self.elastic.floor <= limit <= self.elastic.ceiling
            if limit > before:
                assert self.total - self.others - limit >= 2 * low_mark(self.total), "grew into the pressure"
            self.held = min(self.held, limit)


def world(total: int = 24 * GiB, floor: int = GiB, ceiling: int = 16 * GiB) -> World:
    return World(Governor(floor, ceiling), total)


def test_marks_scale_with_the_machine() -> None:
    assert low_mark(2 * GiB) <= 64 * MiB
    assert 256 * MiB <= low_mark(24 * GiB) <= GiB
    assert low_mark(1 << 45) == GiB


def test_a_budget_that_the_group_was_made_for_is_left_alone() -> None:
    """host_memory = 1400 MiB with 300 MiB of libraries in a group of 2 GiB, and activations that come and go."""
    w = world(2 * GiB, 100 * MiB, 1400 * MiB)
    for others in (300, 420, 330, 450, 310) * 20:
        w.want = others * MiB
        w.run(1)
    assert (w.elastic.shrinks, w.elastic.growths) == (0, 0)


def test_shrinks_within_a_second_and_comes_back() -> None:
    w = world()
    w.run(20)
    w.want = 12 * GiB
    w.run(1)
    assert w.others == w.want, "they do not have theirs within a second"
    assert w.available >= low_mark(w.total)
    assert w.elastic.limit > 8 * GiB, "far more was given than asked for"
    w.want = 0
    w.run(20)
    assert w.elastic.limit == w.elastic.ceiling


def test_what_is_not_filled_yet_is_cut_first_and_counted_before_growing() -> None:
    w = world()
    w.want, w.fill = 20 * GiB, 0
    w.held = 3700 * MiB
    w.run(TICK)
    assert w.available >= low_mark(w.total)
    assert w.elastic.limit < 4 * GiB
    w.want = 10 * GiB
    w.run(60)
    assert w.elastic.limit + w.others <= w.total - 2 * low_mark(w.total)


def test_what_is_about_to_go_is_not_asked_for_twice() -> None:
    elastic = Governor(GiB, 16 * GiB)
    first = elastic.advise(0.0, 100 * MiB, 24 * GiB, 0)
    assert first < 16 * GiB
    assert elastic.advise(0.2, 100 * MiB, 24 * GiB, first - 16 * GiB) == first, "a lease holds it back"


def test_who_comes_and_goes_does_not_make_it_swing() -> None:
    """Another program takes 8 GiB for three seconds, and gives them back for three seconds, for half an hour."""
    w = world()
    w.run(20)
    for _ in range(300):
        w.want = 12 * GiB
        w.run(3)
        w.want = 4 * GiB
        w.run(3)
    directions = [b > a for a, b in pairwise(w.limits) if a != b]
    swings = sum(a != b for a, b in pairwise(directions))
    assert swings <= 12, "there were three hundred occasions"
    assert w.elastic.limit > 8 * GiB, "what others never take is used"


@given(
    st.sampled_from([GiB, 2 * GiB, 24 * GiB, 512 * GiB]),
    st.floats(0.01, 0.5),
    st.floats(0.01, 1.5),
    st.lists(st.tuples(st.floats(0, 1.2), st.floats(0.2, 30)), max_size=12),
    st.sampled_from([50 * MiB, GiB, 100 * GiB]),
)
def test_whatever_others_do(total: int, floor: float, span: float, plan: list[tuple[float, float]], fill: int) -> None:
    w = world(total, int(total * floor), int(total * (floor + span)))
    w.fill = fill
    for others, seconds in plan:
        w.want = int(others * total)
        w.run(seconds)
        low = low_mark(total)
        assert w.elastic.limit == w.elastic.floor or seconds < 1 or w.available >= low, (
            "memory is short, and there is more to give"
        )
    w.want = 0
    w.run(600)
    reachable = min(w.elastic.ceiling, total - 2 * low_mark(total))
    step = max(2, (w.elastic.ceiling - w.elastic.floor) // 16)
    if w.held == w.elastic.limit:
        assert w.elastic.limit >= reachable - step, "there is plenty, but it does not come back"
    settled = w.elastic.limit
    w.run(200)
    assert w.elastic.limit == settled or w.held < w.elastic.limit, "it does not come to rest"


@given(st.integers(0, 4 * GiB), st.integers(0, 4 * GiB))
def test_less_available_never_means_a_higher_limit(one: int, other: int) -> None:
    limits = []
    for available in sorted((one, other)):
        elastic = Governor(GiB, 16 * GiB)
        elastic.advise(0.0, 0, 24 * GiB, 0)
        elastic.advise(1.0, available, 24 * GiB, 0)
        limits.append(elastic.advise(60.0, available, 24 * GiB, 0))
    assert limits == sorted(limits)
