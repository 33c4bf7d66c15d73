"""The bridge under real threads, tiny regions and a fake drive: right bytes, right errors, no hang."""

import gc
import queue
import random
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from penstock.runtime.bridge import HOUSE, Bridge
from penstock.tiering.errors import Closed, ReadError, UnplaceableModule
from penstock.tiering.events import Acquire, Action, Cancel, Event, Grant, ReadDone, ReadFailed, Refuse, Release, Slot
from penstock.tiering.fakes import FakeFlash, FakeMemory, pattern
from penstock.tiering.limits import EXPERTS, PINNED, STREAM, Home
from penstock.tiering.planner import Planner
from penstock.tiering.policy.cycle import Cycle
from penstock.tiering.policy.eviction import EVICTION
from penstock.tiering.residency import Residency
from penstock.tiering.units import PAGE, BlockId, Extent

SOON = 20.0
"""Seconds after which a test gives up on what should take no time."""

PINS = [BlockId("dense", f"norm.{n}") for n in range(2)]
DENSE = [BlockId("dense", f"layer.{n}") for n in range(6)]
EXPERT = [BlockId("expert", "mlp", n) for n in range(8)]
PAGES = dict(zip(PINS + DENSE + EXPERT, [1, 1, 1, 3, 2, 1, 3, 2] + [1] * 8, strict=True))


class HookedPlanner(Planner):
    """Calls ``hook`` with every event, before or after it is handled."""

    before: Callable[[Event], None] | None = None
    after: Callable[[Event], None] | None = None

    def handle(self, event: Event, now: float) -> list[Action]:
        if self.before is not None:
            self.before(event)
        actions = super().handle(event, now)
        if self.after is not None:
            self.after(event)
        return actions


class Rig:
    """A model's worth of blocks: 2 pinned, 6 streamed through 4 pages, 8 experts in a cache of 3 pages."""

    def __init__(self, *, depth: int = 2, stream: int = 4, experts: int = 3, eviction: str = "lru") -> None:
        homes, offset = {}, 0
        for block, pages in PAGES.items():
            region = EXPERTS if block in EXPERT else PINNED if block in PINS else STREAM
            homes[block] = Home(Extent(0, offset, pages * PAGE), region)
            offset += pages * PAGE
        self.residency = Residency("host", {PINNED: 2 * PAGE, STREAM: stream * PAGE, EXPERTS: experts * PAGE})
        self.planner = HookedPlanner(
            self.residency,
            homes,
            cycle=Cycle(DENSE),
            experts=EVICTION[eviction](),
            depth=depth,
            read_limit=3 * PAGE,
        )
        self.flash, self.memory = FakeFlash(), FakeMemory(self.residency.capacity)
        self.bridge = Bridge(self.planner, self.flash, self.memory)

    def right(self, block: BlockId, slot: Slot) -> bool:
        return bytes(self.memory.view(slot.offset, slot.length)) == pattern(block, PAGES[block] * PAGE)

    def use(self, *blocks: BlockId) -> None:
        """Lease each block, look at it, give it back."""
        with self.bridge.acquire(blocks) as leases:
            for block, slot in leases:
                assert self.right(block, slot)
                self.bridge.release(block)

    def held(self) -> dict[BlockId, int]:
        return dict(self.residency.held(threading.get_ident()))


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.flash.gate.set()
    assert Worker(rig.bridge.close).result() is None


class Worker(threading.Thread):
    """Runs ``work`` and keeps what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error

    def result(self) -> BaseException | None:
        self.join(SOON)
        assert not self.is_alive(), "hangs"
        return self.error


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads change hands often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


# --- leases ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize(("depth", "experts", "eviction"), [(1, 1, "lru"), (3, 3, "lfu")])
def test_bytes_under_a_lease_are_right_in_all_threads(depth: int, experts: int, eviction: str) -> None:
    rig = Rig(depth=depth, experts=experts, eviction=eviction)
    dict(rig.bridge.acquire(PINS, stream=HOUSE))

    def compute(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(12):
            rig.bridge.begin()
            for dense in DENSE:
                ((block, slot),) = rig.bridge.acquire([dense])
                assert rig.right(block, slot)
                wanted = choose.sample(EXPERT, choose.randint(1, 6))
                for expert, place in rig.bridge.acquire(wanted):
                    assert rig.right(expert, place)
                    wanted.remove(expert)
                    assert rig.right(expert, place), "changed under the lease"
                    rig.bridge.release(expert)
                assert wanted == []
                assert rig.right(block, slot), "changed under the lease"
                rig.bridge.release(block)
            rig.bridge.end()

    workers = [Worker(lambda seed=seed: compute(seed)) for seed in range(4)]
    assert [worker.result() for worker in workers] == [None] * 4
    rig.bridge.check_integrity()
    assert list(rig.residency.holders(STREAM)) == []
    assert list(rig.residency.holders(EXPERTS)) == []
    assert rig.bridge.counters().evictions > 0
    rig.bridge.close()


def test_a_hit_needs_no_read_and_no_wait(rig: Rig) -> None:
    rig.use(EXPERT[0])
    reads, stalled = len(rig.flash.reads), rig.bridge.stall_seconds
    rig.flash.gate.clear()
    rig.use(EXPERT[0])
    assert (len(rig.flash.reads), rig.bridge.stall_seconds) == (reads, stalled)
    assert rig.bridge.counters().expert_hits == 1


def test_hits_come_while_misses_are_read(rig: Rig) -> None:
    rig.use(EXPERT[3])
    rig.flash.gate.clear()
    with rig.bridge.acquire([EXPERT[0], EXPERT[3]]) as leases:
        assert next(leases)[0] == EXPERT[3]
        rig.flash.gate.set()
        assert next(leases)[0] == EXPERT[0]
    assert rig.bridge.stall_seconds > 0


def test_the_house_keeps_its_leases(rig: Rig) -> None:
    assert [block for block, _ in rig.bridge.acquire(PINS, stream=HOUSE)] == PINS
    rig.bridge.begin()
    rig.bridge.end()
    assert dict(rig.residency.held(HOUSE)) == {PINS[0]: 1, PINS[1]: 1}


def test_end_takes_back_what_is_held(rig: Rig) -> None:
    rig.bridge.begin()
    dict(rig.bridge.acquire([DENSE[0]]))
    rig.bridge.end()
    assert rig.held() == {}


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_error_reaches_the_thread_that_waits_and_no_other(rig: Rig) -> None:
    error = ReadError("injected")
    rig.flash.fail(EXPERT[5], error)
    good = Worker(lambda: [rig.use(EXPERT[0]) for _ in range(20)])  # type: ignore[arg-type, return-value]
    bad = Worker(lambda: rig.use(EXPERT[5]))
    assert bad.result() is error
    assert good.result() is None
    rig.bridge.check_integrity()


def test_works_again_when_the_drive_does(rig: Rig) -> None:
    rig.flash.fail(DENSE[1], ReadError("injected"), times=1)
    with pytest.raises(ReadError, match="injected"):
        rig.use(DENSE[1])
    rig.use(DENSE[1])


def test_a_drive_that_fails_for_ever_is_not_asked_for_ever() -> None:
    rig = Rig()
    for block in DENSE:
        rig.flash.fail(block, ReadError("injected"))
    with pytest.raises(ReadError):
        rig.use(DENSE[0])
    rig.bridge.close()
    assert len(rig.flash.reads) <= len(DENSE)


def test_an_error_leaves_only_what_was_taken(rig: Rig) -> None:
    rig.use(EXPERT[0])
    refused = threading.Semaphore(0)
    rig.flash.fail(EXPERT[5], ReadError("injected"))
    rig.flash.gate.clear()
    leases = rig.bridge.acquire([EXPERT[0], EXPERT[5], EXPERT[6]])
    assert next(leases)[0] == EXPERT[0]
    rig.planner.after = lambda event: refused.release() if isinstance(event, ReadFailed) else None
    rig.flash.gate.set()
    assert refused.acquire(timeout=SOON)
    with pytest.raises(ReadError):
        next(leases)
    assert rig.held() == {EXPERT[0]: 1}
    rig.bridge.release(EXPERT[0])


def test_a_block_that_cannot_fit_beside_what_is_held_is_refused(rig: Rig) -> None:
    dict(rig.bridge.acquire([DENSE[1]]))
    with pytest.raises(UnplaceableModule, match=r"layer\.4"):
        rig.use(DENSE[4])
    rig.bridge.release(DENSE[1])
    rig.use(DENSE[4])


# --- stopping early -------------------------------------------------------------------------------------------------


def test_closing_the_leases_cancels_and_gives_back(rig: Rig) -> None:
    rig.use(EXPERT[1], EXPERT[2])
    rig.flash.gate.clear()
    leases = rig.bridge.acquire([EXPERT[1], EXPERT[2], EXPERT[7]])
    block, _ = next(leases)
    leases.close()
    assert rig.held() == {block: 1}, "what was not taken is still leased"
    rig.bridge.release(block)
    rig.flash.gate.set()
    rig.use(*EXPERT)
    rig.bridge.check_integrity()


def test_a_generator_that_outlives_its_forward_does_no_harm(rig: Rig) -> None:
    """An exception keeps it alive in its traceback until after ``end``."""
    rig.use(EXPERT[1], EXPERT[2])
    rig.bridge.begin()
    leases = rig.bridge.acquire([EXPERT[1], EXPERT[2], EXPERT[7]])
    next(leases)
    rig.bridge.end()
    rig.bridge.begin()
    ((block, _),) = rig.bridge.acquire([EXPERT[2]])
    leases.close()
    assert rig.held() == {block: 1}
    rig.bridge.release(block)
    rig.bridge.end()


def test_a_generator_collected_inside_the_planner_does_not_deadlock(rig: Rig) -> None:
    """Garbage is collected wherever something is allocated, also under the bridge's lock."""
    events: list[Event] = []
    rig.use(EXPERT[0])

    def work() -> None:
        cycle: list[object] = [rig.bridge.acquire([EXPERT[0], EXPERT[1]])]
        cycle.append(cycle)
        next(cycle[0])  # type: ignore[call-overload]
        rig.flash.gate.set()
        del cycle
        rig.planner.before = lambda event: (gc.collect(), events.append(event))  # type: ignore[assignment, return-value]
        rig.bridge.release(EXPERT[0])

    gc.disable()
    try:
        rig.flash.gate.clear()
        assert Worker(work).result() is None
    finally:
        gc.enable()
    assert [type(event) for event in events if not isinstance(event, ReadDone)][:2] == [Release, Cancel]
    rig.bridge.check_integrity()


# --- the end --------------------------------------------------------------------------------------------------------


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
        rig.bridge.release(EXPERT[0])
        rig.use(EXPERT[2])

    assert isinstance(Worker(work).result(), Closed)


def test_a_read_that_cannot_start_reaches_who_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to its end inside of the account that ordered it."""
    error = ValueError("the bundle is closed")

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(rig.flash, "read", refuse)
        with pytest.raises(ValueError, match="the bundle is closed"):
            rig.use(EXPERT[0])
    rig.use(EXPERT[0])
    rig.bridge.check_integrity()


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

    class Inbox(queue.SimpleQueue[Grant | Refuse]):
        def put(self, item: Grant | Refuse, block: bool = True, timeout: float | None = None) -> None:
            told.append(item)
            rig.bridge._open[-len(told)] = (0, queue.SimpleQueue())  # another thread's, just now

    rig.bridge._open |= {1_000_000: (0, Inbox()), 1_000_001: (0, Inbox())}
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
