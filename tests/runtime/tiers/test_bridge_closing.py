"""The end of a bridge, in the middle of whatever goes on: all who wait are told, reads land, no hang."""

import random
import threading
from collections.abc import Callable

import pytest

from penstock.tiering.errors import Closed
from penstock.tiering.events import Acquire, Event, Grant, ReadDone, Refuse, Release
from tests.support.rig import DENSE, EXPERT, SOON, Rig, Worker


def test_close_raises_closed_in_all_who_wait_and_lets_reads_land(rig: Rig) -> None:
    rig.flash.gate.clear()
    waiting = threading.Semaphore(0)
    rig.planner.after = lambda event: waiting.release() if isinstance(event, Acquire) else None
    workers = [Worker(lambda expert=expert: rig.use(expert)) for expert in EXPERT[:5]]
    assert all(waiting.acquire(timeout=SOON) for _ in workers)
    assert rig.flash.started.acquire(timeout=SOON)
    close = Worker(rig.bridge.close)
    for worker in workers:
        assert isinstance(worker.result(), Closed)
    assert close.is_alive(), "reads in flight write into memory that the caller is about to free"
    rig.flash.gate.set()
    assert close.result() is None


@pytest.mark.parametrize("kind", [Release, Acquire])
def test_closed_by_the_collector_inside_the_planner_does_not_wait(rig: Rig, kind: type) -> None:
    """The read in flight needs the lock that this thread has, and so does the one that it is about to order."""

    def work() -> None:
        with rig.bridge.acquire([EXPERT[0]]) as leases:
            assert next(leases)[0] == EXPERT[0]
        rig.flash.gate.clear()
        rig.bridge.acquire([EXPERT[1]]).close()
        rig.planner.before = lambda event: rig.bridge.close() if isinstance(event, kind) else None
        rig.planner.inside = rig.bridge.close if kind is Release else None
        rig.bridge.release(EXPERT[0])
        rig.use(EXPERT[2])

    assert isinstance(Worker(work).result(), Closed)


def test_after_close(rig: Rig) -> None:
    rig.bridge.begin()
    dict(rig.bridge.acquire([DENSE[0]]))
    rig.bridge.close()
    rig.bridge.close()
    rig.bridge.release(DENSE[0])
    rig.bridge.end()
    with pytest.raises(Closed, match="load it again"):
        rig.bridge.begin()
    with pytest.raises(Closed):
        rig.use(EXPERT[0])


def test_closed_does_not_keep_its_callers_alive(rig: Rig) -> None:
    """An exception raised again and again gathers a traceback, and with it every caller's frame and tensors."""
    rig.bridge.close()
    raised = []
    for _ in range(2):
        with pytest.raises(Closed) as caught:
            rig.bridge.begin()
        raised.append(caught.value)
    assert raised[0] is not raised[1]


def test_close_reaches_all_while_others_arrive(rig: Rig) -> None:
    told = []

    def answer(item: Grant | Refuse) -> None:
        told.append(item)
        rig.bridge._open[-len(told)] = (0, print)  # another thread's, just now

    rig.bridge._open |= {1_000_000: (0, answer), 1_000_001: (0, answer)}
    rig.bridge.close()
    assert len(told) == 2


@pytest.mark.usefixtures("restless")
def test_close_among_busy_threads() -> None:
    for seed in range(10):
        rig = Rig()

        def compute(rig: Rig = rig, seed: int = seed) -> None:
            choose = random.Random(seed)
            while True:
                rig.use(*choose.sample(EXPERT, 3))

        workers = [Worker(compute) for _ in range(3)]
        assert rig.flash.started.acquire(timeout=SOON)
        assert Worker(rig.bridge.close).result() is None
        assert all(isinstance(worker.result(), Closed) for worker in workers)


def raise_on(kind: type, error: BaseException) -> Callable[[Event], None]:
    def hook(event: Event) -> None:
        if isinstance(event, kind):
            raise error

    return hook


def test_an_interrupt_inside_the_planner_closes_the_model(rig: Rig) -> None:
    rig.flash.gate.clear()
    waiter = Worker(lambda: rig.use(EXPERT[0]))
    assert rig.flash.started.acquire(timeout=SOON)
    rig.planner.after = raise_on(Acquire, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        rig.use(EXPERT[1])
    error = waiter.result()
    assert isinstance(error, Closed)
    assert "interrupted" in str(error)
    with pytest.raises(Closed, match="interrupted"):
        rig.bridge.begin()
    rig.flash.gate.set()
    assert Worker(rig.bridge.close).result() is None


def test_an_error_on_a_readers_thread_closes_the_model(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reported, bug = [], RuntimeError("a bug")
    monkeypatch.setattr(threading, "excepthook", lambda told: reported.append(told.exc_value))
    rig.planner.before = raise_on(ReadDone, bug)
    waiter = Worker(lambda: rig.use(EXPERT[0]))
    assert isinstance(waiter.result(), Closed)
    rig.flash.join()
    assert reported == [bug]
    with pytest.raises(Closed, match="a bug"):
        rig.bridge.begin()
    assert Worker(rig.bridge.close).result() is None
