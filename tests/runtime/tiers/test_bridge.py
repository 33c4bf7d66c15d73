"""The bridge under real threads, tiny regions and a fake drive: right bytes, right errors, no hang."""

import gc
import random
import threading

import pytest

from penstock.runtime.tiers import bridge
from penstock.runtime.tiers.leases import Inbox
from penstock.tiering.errors import Closed, ReadError, UnplaceableModule
from penstock.tiering.events import PINNING_STREAM, Acquire, Begin, Cancel, End, Event, ReadFailed, Release
from penstock.tiering.planner.regions import EXPERTS, STREAM
from tests.support.rig import DENSE, EXPERT, PINS, SOON, Rig, Worker

# --- leases ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize(("depth", "experts", "eviction"), [(1, 1, "lru"), (3, 3, "lfu")])
def test_bytes_under_a_lease_are_right_in_all_threads(depth: int, experts: int, eviction: str) -> None:
    rig = Rig(depth=depth, experts=experts, eviction=eviction)
    dict(rig.bridge.acquire(PINS, stream=PINNING_STREAM))

    def compute(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(6):
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
    rig.flash.join()
    reads, stalled = len(rig.flash.reads), rig.bridge.stall_seconds
    rig.flash.gate.clear()
    rig.use(EXPERT[0])
    assert (len(rig.flash.reads), rig.bridge.stall_seconds) == (reads, stalled)
    assert rig.bridge.counters().expert_hits == 1


@pytest.fixture
def ends(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The tickets that the bridge was told of the end of, each with whether leases were withdrawn."""
    told: list[tuple[int, bool]] = []
    forget = bridge.Bridge.forget

    def noting(self: bridge.Bridge, ticket: int, inbox: Inbox, *, withdraw: bool) -> None:
        told.append((ticket, withdraw))
        forget(self, ticket, inbox, withdraw=withdraw)

    monkeypatch.setattr(bridge.Bridge, "forget", noting)
    return told


def test_the_bridge_is_told_once_of_the_end_of_leases(rig: Rig, ends: list[tuple[int, bool]]) -> None:
    with rig.bridge.acquire(EXPERT[:2]) as leases:
        assert len(dict(leases)) == 2
    leases.close()
    assert list(leases) == []
    assert ends == [(leases.ticket, False)]
    nothing = rig.bridge.acquire([])
    assert list(nothing) == []
    nothing.close()
    assert ends[1:] == [(nothing.ticket, False)]


def test_the_bridge_is_told_once_of_leases_given_up(rig: Rig, ends: list[tuple[int, bool]]) -> None:
    rig.flash.gate.clear()
    with rig.bridge.acquire(EXPERT[:1]) as leases:
        pass
    leases.close()
    rig.flash.gate.set()
    assert ends == [(leases.ticket, True)]
    rig.flash.fail(EXPERT[1], ReadError("broken"))
    with pytest.raises(ReadError), rig.bridge.acquire([EXPERT[1]]) as refused:
        next(refused)
    assert ends[1:] == [(refused.ticket, True)]


def test_hits_come_while_misses_are_read(rig: Rig) -> None:
    rig.use(EXPERT[3])
    rig.flash.gate.clear()
    with rig.bridge.acquire([EXPERT[0], EXPERT[3]]) as leases:
        assert next(leases)[0] == EXPERT[3]
        rig.flash.gate.set()
        assert next(leases)[0] == EXPERT[0]
    assert rig.bridge.stall_seconds > 0


def test_the_house_keeps_its_leases(rig: Rig) -> None:
    assert [block for block, _ in rig.bridge.acquire(PINS, stream=PINNING_STREAM)] == PINS
    rig.bridge.begin()
    rig.bridge.end()
    assert dict(rig.residency.held(PINNING_STREAM)) == {PINS[0]: 1, PINS[1]: 1}


def test_end_takes_back_what_is_held(rig: Rig) -> None:
    rig.bridge.begin()
    dict(rig.bridge.acquire([DENSE[0]]))
    rig.bridge.end()
    assert rig.held() == {}


# --- threads side by side ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("restless")
def test_who_runs_ahead_of_others_waits_for_them(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "PATIENCE", SOON)
    together = threading.Barrier(3)
    hurried: list[Event] = []

    def see(event: Event) -> None:
        if isinstance(event, Acquire) and rig.planner.hurries(event.stream, event.blocks):
            hurried.append(event)

    def compute() -> None:
        for _ in range(10):
            rig.bridge.begin()
            together.wait(SOON)
            for block in DENSE:
                rig.use(block)
            rig.bridge.end()
            together.wait(SOON)

    rig.planner.before = see
    workers = [Worker(compute) for _ in range(3)]
    assert [worker.result() for worker in workers] == [None] * 3
    assert hurried == []


def test_nobody_waits_for_ever_for_a_thread_that_does_something_else(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "PATIENCE", 0.01)
    rig.bridge.begin()  # and stays where it is

    def compute() -> None:
        rig.bridge.begin()
        rig.use(*DENSE[:1])
        rig.use(*DENSE[1:2])

    stalled = rig.bridge.stall_seconds
    assert Worker(compute).result() is None
    assert rig.bridge.stall_seconds >= stalled + 0.01


def test_closing_wakes_who_waits_for_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "PATIENCE", 10 * SOON)
    waits = threading.Event()
    rig.bridge.begin()

    def compute() -> None:
        rig.bridge.begin()
        rig.use(DENSE[0])
        monkeypatch.setattr(
            rig.bridge._moved, "wait", lambda timeout, wait=rig.bridge._moved.wait: waits.set() or wait(timeout)
        )
        rig.use(DENSE[1])

    worker = Worker(compute)
    assert waits.wait(SOON)
    rig.bridge.close()
    assert isinstance(worker.result(), Closed)


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
    rig.flash.join()

    def work() -> None:
        cycle: list[object] = [rig.bridge.acquire([EXPERT[0], EXPERT[1]])]
        cycle.append(cycle)
        next(cycle[0])  # type: ignore[call-overload]
        rig.planner.inside = gc.collect
        rig.planner.before = events.append
        del cycle
        rig.bridge.release(EXPERT[0])

    gc.disable()
    try:
        rig.flash.gate.clear()
        assert Worker(work).result() is None
    finally:
        gc.enable()
    # What other tests have left running may collect garbage too. Blocks are given back by an event if others want them.
    assert Cancel in map(type, events)
    assert {type(event) for event in events} <= {Release, Cancel}
    assert not rig.held()
    rig.flash.gate.set()
    rig.bridge.check_integrity()


def test_what_is_in_memory_is_leased_together_or_not_at_all(rig: Rig) -> None:
    rig.use(EXPERT[0], EXPERT[1])
    rig.use(DENSE[0])
    rig.flash.join()
    reads = len(rig.flash.reads)
    assert rig.bridge.acquire_resident([EXPERT[0], EXPERT[2]]) is None
    assert rig.bridge.acquire_resident([EXPERT[0], DENSE[0]], region=EXPERTS) is None
    assert rig.held() == {}
    slots = rig.bridge.acquire_resident([EXPERT[0], EXPERT[1]], region=EXPERTS)
    assert slots is not None
    assert all(rig.right(block, slot) for block, slot in slots.items())
    assert rig.held() == {EXPERT[0]: 1, EXPERT[1]: 1}
    rig.bridge.release(*slots)
    assert rig.held() == {}
    assert len(rig.flash.reads) == reads


def test_who_leases_what_is_in_memory_waits_for_nobody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waited for others the block could go, and what reads it again needs the lock that is held here."""
    rig.use(DENSE[0])
    rig.planner.handle(Begin(1), 0.0)
    rig.bridge.begin()
    assert rig.planner.crowded
    monkeypatch.setattr(rig.planner, "hurries", lambda *_: pytest.fail("it would wait"))
    slots = rig.bridge.acquire_resident([DENSE[0]])
    assert slots is not None
    rig.bridge.release(*slots)
    rig.bridge.end()
    rig.planner.handle(End(1), 0.0)
