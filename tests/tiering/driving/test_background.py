"""A task beside the reads: it runs with the driver, ends with it, and holds up nobody."""

import asyncio
import queue
import threading
from collections.abc import Iterator

import pytest

from penstock.kernels.waiting import no_waiting
from penstock.tiering.driving.background import BackgroundTask
from penstock.tiering.driving.driver import Driver
from penstock.tiering.events import Event, ReadDone
from penstock.tiering.units import PAGE
from tests.support.drivers import BLOCKS, SOON, finishes, in_background, read
from tests.support.fakes import FakeFlash, FakeMemory


class Task:
    """Says when it begins and when it is cancelled, and waits for ever in between."""

    def __init__(self) -> None:
        self.said: queue.Queue[str] = queue.Queue()

    async def __call__(self) -> None:
        self.said.put("begins")
        try:
            await asyncio.Event().wait()
        finally:
            self.said.put("ends")


@pytest.fixture
def task() -> Iterator[Task]:
    before = set(threading.enumerate())
    yield Task()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "penstock-background"]


def test_it_runs_with_the_driver_and_ends_with_it(task: Task) -> None:
    flash, posted = FakeFlash(), queue.Queue[Event]()
    driver = Driver(flash, FakeMemory(len(BLOCKS) * PAGE), posted.put, beside=task)
    assert task.said.get(timeout=SOON) == "begins"
    flash.gate.clear()
    driver.submit(read(0, 0))
    closing = in_background(driver.close)
    assert task.said.get(timeout=SOON) == "ends"
    assert closing.is_alive(), "the read is in flight"
    flash.gate.set()
    assert finishes(closing)
    assert posted.get_nowait() == ReadDone(0)
    driver.close()


def test_a_driver_with_nothing_beside_has_no_thread() -> None:
    before = set(threading.enumerate())
    Driver(FakeFlash(), FakeMemory(PAGE), lambda event: None).close()
    assert set(threading.enumerate()) <= before


def test_reads_go_on_while_it_is_busy() -> None:
    """No read passes through its loop."""
    busy, free, posted = threading.Event(), threading.Event(), queue.Queue[Event]()

    async def block() -> None:
        busy.set()
        free.wait(SOON)

    driver = Driver(FakeFlash(), FakeMemory(len(BLOCKS) * PAGE), posted.put, beside=block)
    assert busy.wait(SOON)
    driver.submit(read(0, 0))
    assert posted.get(timeout=SOON) == ReadDone(0)
    assert not free.is_set()
    free.set()
    driver.close()


def test_it_may_submit() -> None:
    posted: queue.Queue[Event] = queue.Queue()
    made: queue.Queue[Driver] = queue.Queue()

    async def submit() -> None:
        made.get(timeout=SOON).submit(read(0, 0))

    driver = Driver(FakeFlash(), FakeMemory(len(BLOCKS) * PAGE), posted.put, beside=submit)
    made.put(driver)
    assert posted.get(timeout=SOON) == ReadDone(0)
    driver.close()


def test_closed_at_once_and_several_times(task: Task) -> None:
    beside = BackgroundTask(task)
    closing = [in_background(beside.close) for _ in range(4)]
    assert all(finishes(thread) for thread in closing)
    beside.close()


def test_closed_where_it_must_not_wait(task: Task) -> None:
    """By the garbage collector: in its own thread, or in one that has a lock that the task may need."""
    lock, made = threading.Lock(), queue.Queue[BackgroundTask]()

    async def work() -> None:
        made.get(timeout=SOON).close()
        with lock:
            await task()

    with no_waiting, lock:
        beside = BackgroundTask(work)
        made.put(beside)
        closing = in_background(beside.close)
        beside.close()
    assert finishes(closing)
    assert finishes(in_background(beside.close))


def test_a_bug_in_it_is_reported_and_the_reads_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: queue.Queue[BaseException | None] = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", lambda told: reported.put(told.exc_value))
    bug, posted = RuntimeError("a bug"), queue.Queue[Event]()

    async def fail() -> None:
        raise bug

    driver = Driver(FakeFlash(), FakeMemory(len(BLOCKS) * PAGE), posted.put, beside=fail)
    assert reported.get(timeout=SOON) is bug
    driver.submit(read(0, 0))
    assert posted.get(timeout=SOON) == ReadDone(0)
    assert finishes(in_background(driver.close))
