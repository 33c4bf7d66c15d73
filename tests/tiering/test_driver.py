"""The driver on real threads, over a fake drive."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from penstock.kernels.reading import mark_thread
from penstock.tiering.driver import Driver
from penstock.tiering.errors import ReadError
from penstock.tiering.events import Event, Part, Read, ReadDone, ReadFailed, Slot
from penstock.tiering.fakes import FakeFlash, FakeMemory, pattern
from penstock.tiering.units import PAGE, BlockId, Extent

SOON = 10.0
"""Seconds after which a test gives up on what should take no time."""

BLOCKS = [BlockId("expert", "m", part) for part in range(8)]


def read(number: int, *parts: int) -> Read:
    """Read number ``number``, of ``parts``, each into the slot of its own number."""
    made = (Part(BLOCKS[n], Extent(0, n * PAGE, PAGE), Slot("experts", n * PAGE, PAGE)) for n in parts)
    return Read(number, tuple(made), True)


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


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def finishes(thread: threading.Thread) -> bool:
    thread.join(SOON)
    return not thread.is_alive()


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
    assert {rig.next(), rig.next()} == {ReadDone(0), ReadDone(1)}
    assert not rig.driver._thread.is_alive()


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


def test_close_from_its_own_threads_does_not_wait_for_itself() -> None:
    """A model may be collected, and so closed, by whatever thread happens to run the garbage collector."""
    rig = Rig()
    closed = threading.Semaphore(0)

    class Closing(FakeFlash):
        async def read(self, parts: object, into: object) -> None:
            driver.close()
            await asyncio.wrap_future(pool.submit(driver.close))
            closed.release()

    def post(event: Event) -> None:
        driver.close()
        closed.release()

    driver = Driver(Closing(), rig.memory, post)
    with ThreadPoolExecutor(1, initializer=mark_thread) as pool:
        driver.submit(read(0, 0))
        assert closed.acquire(timeout=SOON)
        assert closed.acquire(timeout=SOON)
        assert finishes(driver._thread)
    rig.driver.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_post_still_lets_reads_land() -> None:
    flash, memory = FakeFlash(), FakeMemory(len(BLOCKS) * PAGE)

    def post(event: Event) -> None:
        raise RuntimeError("a bug in the planner")

    driver = Driver(flash, memory, post)
    flash.gate.clear()
    driver.submit(read(0, 0))
    driver.submit(read(1, 1))
    assert flash.started.acquire(timeout=SOON)
    assert flash.started.acquire(timeout=SOON)
    closing = in_background(driver.close)
    flash.gate.set()
    assert finishes(closing)
    assert bytes(memory.view(PAGE, PAGE)) == pattern(BLOCKS[1], PAGE)
