"""When others take cores: by what threads waited and what others ran."""

import pytest

from penstock.tiering.policy.core_contention import PATIENCE, PERIOD, CoreContention, share_waited


class Machine:
    """Two threads that compute all the time, on cores that are theirs for a share of it."""

    def __init__(self) -> None:
        self.now = self.others = 0.0
        self.threads = {1: (0.0, 0.0), 2: (0.0, 0.0)}
        self.decides = CoreContention()
        self.look()

    def look(self) -> bool:
        return self.decides.look(self.now, dict(self.threads), self.others)

    def step(self, waited: float, others: float, wanted: float = 1.0) -> bool:
        """One period: threads wanted to run for a share of it, and ``waited`` for a share of that."""
        self.now += PERIOD
        self.others += others * PERIOD
        part = wanted * PERIOD
        self.threads = {
            n: (run + part * (1 - waited), stood + part * waited) for n, (run, stood) in self.threads.items()
        }
        return self.look()

    def steps(self, count: int, waited: float, others: float, wanted: float = 1.0) -> list[bool]:
        return [self.step(waited, others, wanted) for _ in range(count)]


def test_a_quiet_machine_is_ours() -> None:
    assert not any(Machine().steps(50, waited=0.01, others=0.05))


def test_one_busy_program_takes_a_core_at_once() -> None:
    machine = Machine()
    machine.step(0.0, 0.0)
    assert machine.step(waited=0.3, others=1.0)


def test_own_threads_that_wait_for_each_other_are_no_reason() -> None:
    assert not any(Machine().steps(50, waited=0.5, others=0.1))


def test_others_on_cores_that_nobody_wants_are_no_reason() -> None:
    assert not any(Machine().steps(50, waited=0.01, others=6.0))


def test_it_is_over_after_some_time_without_any() -> None:
    machine = Machine()
    machine.steps(3, waited=0.3, others=1.0)
    looks = machine.steps(round(PATIENCE / PERIOD) + 2, waited=0.0, others=0.0)
    assert looks[0], "programs come and go"
    assert not looks[-1]
    assert looks == sorted(looks, reverse=True)


def test_bursts_do_not_make_it_swing() -> None:
    machine = Machine()
    machine.steps(3, waited=0.3, others=1.0)
    looks = [taken for _ in range(10) for taken in (*machine.steps(5, 0.0, 0.0), *machine.steps(5, 0.3, 1.0))]
    assert all(looks)


def test_a_little_waiting_goes_on_where_it_would_not_begin() -> None:
    begins, goes_on = Machine(), Machine()
    goes_on.steps(3, waited=0.3, others=1.0)
    assert not any(begins.steps(60, waited=0.07, others=1.0))
    assert all(goes_on.steps(60, waited=0.07, others=1.0))


def test_while_nothing_computes_it_lasts_as_long_as_others_run() -> None:
    machine = Machine()
    assert not any(machine.steps(100, waited=0.0, others=1.0, wanted=0.05))
    machine.steps(3, waited=0.3, others=1.0)
    assert all(machine.steps(100, waited=0.0, others=1.0, wanted=0.05))
    assert not machine.steps(100, waited=0.0, others=0.0, wanted=0.05)[-1]


def test_the_same_moment_twice_changes_nothing() -> None:
    machine = Machine()
    assert not machine.look()


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ({}, {1: (1.0, 1.0)}, None),  # a new thread: since when is not known
        ({1: (0.0, 0.0)}, {}, None),  # it has ended
        ({1: (0.0, 0.0)}, {1: (0.1, 0.1)}, None),  # it hardly wanted to run
        ({1: (1.0, 1.0)}, {1: (1.6, 1.4)}, 0.4),
        ({1: (0.0, 0.0), 2: (0.0, 0.0)}, {1: (1.0, 0.0), 2: (0.0, 0.1)}, 0.0),  # readers wait too
    ],
)
def test_only_threads_that_compute_count(
    before: dict[int, tuple[float, float]], after: dict[int, tuple[float, float]], share: float | None
) -> None:
    found = share_waited(before, after, seconds=1.0)
    assert found == (share if share is None else pytest.approx(share))
