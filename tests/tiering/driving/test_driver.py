"""The driver on real threads, over a fake drive."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.kernels.waiting import may_wait
from penstock.tiering.driving.driver import Driver
from penstock.tiering.errors import ReadError
from penstock.tiering.events import Event, ReadDone, ReadFailed
from penstock.tiering.units import PAGE
from tests.support.drivers import BLOCKS, SOON, finishes, in_background, read
from tests.support.fakes import FakeFlash, FakeMemory, pattern


class Rig:
    def __init__(self) -> None:
        self.flash, self.memory = FakeFlash(), FakeMemory(len(BLOCKS) * PAGE)
        self.posted: queue.Queue[Event] = queue.Queue()
        self.driver = Driver(self.flash, self.memory, self.posted.put)

    def next(self) -> Event:
        return self.posted.get(timeout=SOON)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.flash.gate.set()
    rig.driver.close()


def test_bytes_land_in_their_slots(rig: Rig) -> None:
    rig.driver.submit(read(0, 2, 3))
    rig.driver.submit(read(1, 5))
    assert {rig.next(), rig.next()} == {ReadDone(0), ReadDone(1)}
    for n in range(len(BLOCKS)):
        expected = pattern(BLOCKS[n], PAGE) if n in (2, 3, 5) else bytes(PAGE)
        assert bytes(rig.memory.view(n * PAGE, PAGE)) == expected
    assert sorted(rig.flash.reads) == [(BLOCKS[2], BLOCKS[3]), (BLOCKS[5],)]


def test_a_failure_is_posted_and_the_next_read_works(rig: Rig) -> None:
    error = ReadError("injected")
    rig.flash.fail(BLOCKS[1], error, times=1)
    rig.driver.submit(read(0, 0, 1))
    assert rig.next() == ReadFailed(0, error)
    rig.driver.submit(read(1, 0, 1))
    assert rig.next() == ReadDone(1)


def test_memory_that_refuses_is_a_failure(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def view(offset: int, length: int) -> memoryview:
        raise ValueError("closed")

    monkeypatch.setattr(rig.memory, "view", view)
    rig.driver.submit(read(0, 0))
    failed = rig.next()
    assert isinstance(failed, ReadFailed)
    assert isinstance(failed.error, ValueError)


def test_reads_go_on_side_by_side(rig: Rig) -> None:
    rig.flash.gate.clear()
    rig.driver.submit(read(0, 0))
    rig.driver.submit(read(1, 1))
    assert rig.flash.started.acquire(timeout=SOON)
    assert rig.flash.started.acquire(timeout=SOON), "the second read waits for the first"
    assert rig.posted.empty()
    rig.flash.gate.set()
    assert {rig.next(), rig.next()} == {ReadDone(0), ReadDone(1)}


def test_post_may_submit() -> None:
    rig = Rig()
    done: queue.Queue[Event] = queue.Queue()

    def post(event: Event) -> None:
        if event == ReadDone(0):
            driver.submit(read(1, 1))
        else:
            done.put(event)

    driver = Driver(rig.flash, rig.memory, post)
    driver.submit(read(0, 0))
    assert done.get(timeout=SOON) == ReadDone(1)
    driver.close()
    rig.driver.close()


def test_close_lets_reads_land(rig: Rig) -> None:
    rig.flash.gate.clear()
    rig.driver.submit(read(0, 0))
    rig.driver.submit(read(1, 1))
    closing = in_background(rig.driver.close)
    assert rig.flash.started.acquire(timeout=SOON)
    assert closing.is_alive()
    rig.flash.gate.set()
    assert finishes(closing)
    assert {rig.posted.get_nowait(), rig.posted.get_nowait()} == {ReadDone(0), ReadDone(1)}, "posted after close"


def test_close_twice_and_from_several_threads(rig: Rig) -> None:
    errors: list[BaseException] = []

    def close() -> None:
        try:
            rig.driver.close()
        except BaseException as error:
            errors.append(error)

    rig.flash.gate.clear()
    rig.driver.submit(read(0, 0))
    closing = [in_background(close) for _ in range(4)]
    rig.flash.gate.set()
    assert all(finishes(thread) for thread in closing)
    rig.driver.close()
    assert errors == []


def test_close_waits_for_what_follows_from_reads(rig: Rig) -> None:
    posted: list[Event] = []

    def post(event: Event) -> None:
        posted.append(event)
        if isinstance(event, ReadDone) and event.read < 7:
            driver.submit(read(event.read + 1, event.read + 1))

    rig.flash.gate.clear()
    driver = Driver(rig.flash, rig.memory, post)
    driver.submit(read(0, 0))
    closing = in_background(driver.close)
    rig.flash.gate.set()
    assert finishes(closing)
    assert posted == [ReadDone(number) for number in range(8)]


def test_many_threads_submit(rig: Rig) -> None:
    def work(first: int) -> None:
        for number in range(first, first + 10):
            rig.driver.submit(read(number, first // 10))

    for thread in [in_background(lambda n=n: work(10 * n)) for n in range(8)]:  # type: ignore[misc]
        assert finishes(thread)
    rig.driver.close()
    assert {rig.posted.get_nowait() for _ in range(80)} == {ReadDone(number) for number in range(80)}
    assert rig.posted.empty()


def test_close_from_its_own_threads_does_not_wait_for_itself() -> None:
    """A model may be collected, and so closed, by whatever thread happens to run the garbage collector."""
    memory = FakeMemory(len(BLOCKS) * PAGE)
    closed: queue.Queue[str] = queue.Queue()

    class Closing(FakeFlash):
        def read(self, *request: Any) -> None:
            driver.close()
            closed.put("in submit")
            super().read(*request)

    def post(event: Event) -> None:
        driver.close()
        closed.put("in post")

    driver = Driver(Closing(), memory, post)
    assert finishes(in_background(lambda: driver.submit(read(0, 0))))
    assert closed.get(timeout=SOON) == "in submit"
    assert closed.get(timeout=SOON) == "in post"
    assert may_wait()
    assert finishes(in_background(driver.close))


def test_an_interrupt_in_submit_does_not_hold_up_close(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rig.flash, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rig.driver.submit(read(0, 0))
    assert may_wait()
    assert finishes(in_background(rig.driver.close))
    assert rig.posted.empty()


def test_a_failing_post_is_reported_and_the_other_reads_land(monkeypatch: pytest.MonkeyPatch) -> None:
    flash, memory, bug = FakeFlash(), FakeMemory(len(BLOCKS) * PAGE), RuntimeError("a bug in the planner")
    reported, posted = [], []
    monkeypatch.setattr(threading, "excepthook", lambda told: reported.append(told.exc_value))

    def post(event: Event) -> None:
        if event == ReadDone(0):
            raise bug
        posted.append(event)

    driver = Driver(flash, memory, post)
    flash.gate.clear()
    driver.submit(read(0, 0))
    driver.submit(read(1, 1))
    closing = in_background(driver.close)
    flash.gate.set()
    assert finishes(closing)
    assert posted == [ReadDone(1)]
    assert bytes(memory.view(PAGE, PAGE)) == pattern(BLOCKS[1], PAGE)
    flash.join()
    assert reported == [bug]
