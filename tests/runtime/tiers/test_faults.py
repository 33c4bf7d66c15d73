"""A drive that is slow, stutters or fails, under the whole engine but the model: right bytes, clear errors, no hang."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from penstock.kernels.memory.arena import Arena
from penstock.runtime.tiers.bridge import Bridge
from penstock.tiering.driving.ports import BlockSource
from penstock.tiering.errors import ReadError
from penstock.tiering.planner.planner import Planner
from penstock.tiering.planner.regions import EXPERTS, PINNED, STREAM, Home
from penstock.tiering.planner.residency import Residency
from penstock.tiering.policy.eviction import EVICTION
from penstock.tiering.policy.prefetch.cycle import Cycle
from penstock.tiering.store.bundle.flash import BundleFlash
from penstock.tiering.store.bundle.manifest import Block
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.units import PAGE
from tests.support.backends import BACKENDS, Backend
from tests.support.bundle_blocks import write
from tests.support.fakes import FakeFlash, pattern

SOON = 20.0
"""Seconds after which a test gives up on what should take no time."""

Aside = Callable[..., Future[object]]


class Rig:
    """Blocks that stream through a region in which about half of them fit."""

    def __init__(self, flash: BlockSource[memoryview], blocks: tuple[Block, ...]) -> None:
        self.blocks = blocks
        lengths = [block.extent.length for block in blocks]
        region = max(sum(lengths) // 2, 2 * max(lengths)) // PAGE * PAGE
        residency = Residency("host", {PINNED: 0, STREAM: region, EXPERTS: 0})
        self.arena = Arena(residency.capacity)
        planner = Planner(
            residency,
            {block.id: Home(block.extent, STREAM) for block in blocks},
            cycle=Cycle([block.id for block in blocks]),
            experts=EVICTION["lru"],
            depth=2,
            read_limit=8 * PAGE,
        )
        self.bridge = Bridge(planner, flash, self.arena)

    def content(self, block: Block) -> bytes:
        """The block's bytes, leased and given back."""
        with closing(self.bridge.acquire([block.id])) as leases:
            ((_, slot),) = leases
            found = bytes(self.arena.view(slot.offset, slot.length))
            self.bridge.release(block.id)
        return found

    def token(self) -> list[bytes]:
        """One pass over all blocks, as a forward does."""
        self.bridge.begin()
        try:
            return [self.content(block) for block in self.blocks]
        finally:
            self.bridge.end()


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    write(tmp_path / "bundle")
    with Bundle.open(tmp_path / "bundle") as opened:
        yield opened


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


@pytest.fixture
def rig(bundle: Bundle, backend: Backend) -> Iterator[Rig]:
    reader = backend.make(2)
    rig = Rig(BundleFlash(bundle, reader), bundle.manifest.blocks)
    yield rig
    rig.bridge.check_integrity()
    rig.bridge.close()
    reader.close()


@pytest.fixture
def expected(bundle: Bundle) -> list[bytes]:
    """What every token has to find."""
    files = [path.read_bytes() for path in bundle.paths]
    return [files[b.extent.file][b.extent.offset : b.extent.end] for b in bundle.manifest.blocks]


@pytest.fixture
def slow(bundle: Bundle) -> Iterator[tuple[FakeFlash, Rig]]:
    """A drive whose time the test makes, and the engine on it."""
    flash = FakeFlash()
    rig = Rig(flash, bundle.manifest.blocks)
    yield flash, rig
    flash.gate.set()
    rig.bridge.check_integrity()
    rig.bridge.close()


@pytest.fixture
def aside() -> Iterator[Aside]:
    """Runs a function on a thread of its own."""
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


def broken(got: int) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_short_reads(rig: Rig, backend: Backend, expected: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    backend.fault(monkeypatch, lambda got: min(got, 2 * PAGE + 512))
    for _ in range(3):
        assert rig.token() == expected


def test_an_error_in_passing(
    rig: Rig, backend: Backend, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, count = threading.Lock(), 0

    def fail_sometimes(got: int) -> int:
        nonlocal count
        with lock:
            count += 1
            fails = count % 10 == 1
        return broken(got) if fails else got

    backend.fault(monkeypatch, fail_sometimes)
    for _ in range(3):
        assert rig.token() == expected
    assert count > 10


def test_an_error_for_good_reaches_all_who_wait_and_the_next_demand_tries_again(
    rig: Rig, backend: Backend, expected: list[bytes], monkeypatch: pytest.MonkeyPatch, aside: Aside
) -> None:
    assert rig.token() == expected
    with monkeypatch.context() as patch:
        backend.fault(patch, broken)
        for _ in range(2):
            for waiter in [aside(rig.token) for _ in range(4)]:
                with pytest.raises(ReadError, match="cannot be read at offset"):
                    waiter.result(SOON)
        rig.bridge.check_integrity()
    for waiter in [aside(rig.token) for _ in range(4)]:
        assert waiter.result(SOON) == expected


def test_closing_with_reads_under_way(rig: Rig, aside: Aside) -> None:
    """Whoever still waits is refused; nothing writes to the arena afterwards."""
    running = [aside(rig.token) for _ in range(4)]
    rig.bridge.close()
    before = bytes(rig.arena.view(0, rig.arena.length))
    for waiter in running:
        waiter.exception(SOON)
    assert rig.arena.view(0, rig.arena.length) == before


def test_a_drive_that_becomes_twenty_times_slower_and_recovers(slow: tuple[FakeFlash, Rig], aside: Aside) -> None:
    flash, rig = slow
    expected = [pattern(block.id, block.extent.length) for block in rig.blocks]
    for ticks in (5, 100, 5):
        flash.ticks = ticks
        for waiter in [aside(rig.token) for _ in range(3)]:
            assert waiter.result(SOON) == expected


def test_what_is_here_is_had_while_the_drive_is_stuck(slow: tuple[FakeFlash, Rig], aside: Aside) -> None:
    flash, rig = slow
    here = rig.blocks[0]
    ((block, _),) = rig.bridge.acquire([here.id])
    flash.gate.clear()
    waiter = aside(rig.token)  # half of what it needs has to be read
    assert rig.content(here) == pattern(here.id, here.extent.length)
    assert not waiter.done()
    flash.gate.set()
    assert waiter.result(SOON) == [pattern(b.id, b.extent.length) for b in rig.blocks]
    rig.bridge.release(block)
