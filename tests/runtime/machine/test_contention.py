"""Giving way while others take cores, as the counts of a machine say it."""

import threading
from collections.abc import Iterator

import pytest

from penstock.kernels.calls import limit_teams, with_team
from penstock.kernels.machine.core_use import CoreUse, ThreadUse
from penstock.runtime.machine.contention import Contention


class Machine:
    """Tells what was set, and how often it was asked."""

    def __init__(self) -> None:
        self.waited, self._looks, self._asked = 0.0, 0, threading.Condition()
        self._now = self._run = self._stood = self._others = 0.0

    def read(self) -> CoreUse | None:
        self._now += 1
        self._run += 1 - self.waited
        self._stood += self.waited
        self._others += 2 * self.waited
        with self._asked:
            self._looks += 1
            self._asked.notify_all()
        return CoreUse(self._now, {1: ThreadUse(self._run, self._stood)}, self._others)

    def wait(self, looks: int) -> None:
        with self._asked:
            last = self._looks + looks
            assert self._asked.wait_for(lambda: self._looks >= last, timeout=60)


def threads() -> int:
    found: list[int] = []
    with_team(8, found.append)
    return found[0]


@pytest.fixture(autouse=True)
def no_limit() -> Iterator[None]:
    yield
    limit_teams(None)


def test_calls_have_one_thread_while_cores_are_taken() -> None:
    machine = Machine()
    contention = Contention(machine.read, period=0.0)
    hold = contention.hold()
    try:
        machine.wait(3)
        assert not contention.taken
        assert threads() == 8
        machine.waited = 0.5
        machine.wait(4)
        assert contention.taken
        assert threads() == 1
        machine.waited = 0.0
        machine.wait(6)
        assert not contention.taken
        assert threads() == 8
    finally:
        hold.close()


def test_the_last_that_leaves_ends_it() -> None:
    machine = Machine()
    machine.waited = 0.5
    contention = Contention(machine.read, period=0.0)
    first, second = contention.hold(), contention.hold()
    machine.wait(4)
    first.close()
    first.close()
    machine.wait(2)
    assert contention.taken
    assert threads() == 1
    second.close()
    assert not contention.taken
    assert threads() == 8


def test_a_system_that_does_not_count_changes_nothing() -> None:
    contention = Contention(lambda: None)
    hold = contention.hold()
    hold.close()
    assert not contention.taken
