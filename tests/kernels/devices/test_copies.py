"""Copies: in order, their ends on a thread of their own, whatever goes wrong; nothing is held on to."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from penstock.kernels.devices import copies as module
from penstock.kernels.devices.copies import Copied, Copies, WaitForCopy
from penstock.kernels.waiting import may_wait

SOON = 20.0


class Bus:
    """Begins copies, and ends each only when ``go`` is released for it. Some cannot begin, some fail on the way."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, list[Any]]] = []
        self.go = threading.Semaphore(0)
        self.refuse: set[int] = set()
        self.fail: set[int] = set()

    def begin(self, source: torch.Tensor, target: torch.Tensor, after: Sequence[Any]) -> WaitForCopy:
        number = len(self.begun)
        self.begun.append((source.nbytes, list(after)))
        if number in self.refuse:
            raise OSError(f"copy {number} cannot begin")

        def wait() -> None:
            assert self.go.acquire(timeout=SOON)
            if number in self.fail:
                raise OSError(f"copy {number} failed")
            target.copy_(source)

        return wait


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def copies(bus: Bus) -> Iterator[Copies]:
    copies = Copies(bus.begin)
    yield copies
    bus.go.release(1000)
    copies.close()


class Ends:
    """What was told of the ends, and on which threads."""

    def __init__(self) -> None:
        self.errors: list[tuple[int, Exception | None]] = []
        self.threads: set[threading.Thread] = set()
        self.waiting: list[bool] = []
        self._told = threading.Semaphore(0)

    def of(self, number: int) -> Callable[[Exception | None], None]:
        def done(error: Exception | None) -> None:
            self.errors.append((number, error))
            self.threads.add(threading.current_thread())
            self.waiting.append(may_wait())
            self._told.release()

        return done

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self._told.acquire(timeout=SOON), "a copy never ends"


def pair(size: int = 8, value: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((size,), value, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)


def test_copies_end_in_order_on_a_thread_of_their_own(bus: Bus, copies: Copies) -> None:
    ends, pairs = Ends(), [pair(value=n) for n in range(1, 6)]
    for number, (source, target) in enumerate(pairs):
        copies.up(source, target, [number], ends.of(number))
    assert [after for _, after in bus.begun] == [[0], [1], [2], [3], [4]], "begun at once, behind their marks"
    assert not ends.errors
    bus.go.release(5)
    ends.wait(5)
    assert ends.errors == [(number, None) for number in range(5)]
    assert all(torch.equal(source, target) for source, target in pairs)
    (thread,) = ends.threads
    assert thread is not threading.current_thread()
    assert ends.waiting == [False] * 5, "what is closed there must not wait for it"


def test_what_goes_wrong_is_told_on_that_thread_and_the_others_go_on(bus: Bus, copies: Copies) -> None:
    bus.refuse, bus.fail = {1}, {3}
    ends = Ends()
    for number in range(5):
        copies.up(*pair(), [], ends.of(number))
    bus.go.release(5)
    ends.wait(5)
    assert [(number, error and str(error)) for number, error in ends.errors] == [
        (0, None), (1, "copy 1 cannot begin"), (2, None), (3, "copy 3 failed"), (4, None),
    ]  # fmt: skip
    assert len(ends.threads) == 1


def test_a_bug_of_who_is_told_is_reported_and_the_others_go_on(
    bus: Bus, copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, bug, ends = [], RuntimeError("a bug"), Ends()
    monkeypatch.setattr(threading, "excepthook", lambda told: reported.append(told.exc_value))

    def broken(_: Exception | None) -> None:
        raise bug

    copies.up(*pair(), [], broken)
    copies.up(*pair(), [], ends.of(1))
    bus.go.release(2)
    ends.wait(1)
    assert reported == [bug]


def test_calls_come_behind_the_copies_before_them(bus: Bus, copies: Copies) -> None:
    ends = Ends()
    copies.up(*pair(), [], ends.of(0))
    copies.later(lambda: ends.of(1)(None))
    copies.up(*pair(), [], ends.of(2))
    assert not ends.errors
    bus.go.release(2)
    ends.wait(3)
    assert [number for number, _ in ends.errors] == [0, 1, 2]
    assert len(ends.threads) == 1


def test_what_was_copied_is_counted(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what arrived, and only the time in which something was under way."""
    clock = iter([10.0, 13.0, 20.0, 21.0, 30.0, 31.0, 40.0, 44.0])  # asked, ended, asked, ended, ...
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    bus.fail = {1}
    copies, ends = Copies(bus.begin), Ends()
    assert (copies.copied, copies.copied.rate) == (Copied(0, 0.0), 0.0)
    bus.go.release(3)
    for number in range(3):
        copies.up(*pair(100), [], ends.of(number))
        ends.wait(1)
    copies.later(lambda: ends.of(3)(None))
    ends.wait(1)
    copies.close()
    assert copies.copied == Copied(200, 4.0)
    assert copies.copied.rate == 50.0


def test_two_at_a_time_take_the_time_of_both_together(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 13.0, 15.0])  # both asked for, then ended
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    copies, ends = Copies(bus.begin), Ends()
    for number in range(2):
        copies.up(*pair(100), [], ends.of(number))
    bus.go.release(2)
    ends.wait(2)
    copies.close()
    assert copies.copied == Copied(200, 5.0)


def test_close_lets_copies_under_way_end(bus: Bus, copies: Copies) -> None:
    ends, pairs = Ends(), [pair(value=7) for _ in range(3)]
    for number, (source, target) in enumerate(pairs):
        copies.up(source, target, [], ends.of(number))
    closing = threading.Thread(target=copies.close)
    closing.start()
    closing.join(0.01)
    assert closing.is_alive(), "copies under way write to memory that the caller is about to free"
    bus.go.release(3)
    closing.join(SOON)
    assert not closing.is_alive()
    assert all(torch.equal(source, target) for source, target in pairs)
    assert len(ends.errors) == 3
    copies.close()


def test_closed_on_its_own_thread_it_does_not_wait_for_itself(bus: Bus, copies: Copies) -> None:
    closed = threading.Event()

    def close(_: Exception | None) -> None:
        copies.close()
        closed.set()

    copies.up(*pair(), [], close)
    bus.go.release()
    assert closed.wait(SOON)


def test_nothing_is_held_once_it_is_copied(bus: Bus, copies: Copies) -> None:
    """Memory that was copied from may be the last of a budget."""
    ends = Ends()
    source, target = pair()
    watched = [weakref.ref(source), weakref.ref(target)]
    copies.up(source, target, [], ends.of(0))
    del source, target
    bus.go.release()
    ends.wait(1)
    assert [ref() for ref in watched] == [None, None]


def test_bytes_are_queued_until_their_copy_has_ended_well_or_not(bus: Bus, copies: Copies) -> None:
    bus.fail = {1}
    ends = Ends()
    for number in range(2):
        copies.up(*pair(10), [], ends.of(number))
    for left in (20, 10, 0):
        assert copies.queued == left
        if left:
            bus.go.release()
            ends.wait(1)
