"""Blocks through each backend: checked as they arrive, by the reader; faults of the drive are forgiven or named."""

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from penstock.kernels.memory.arena import Arena
from penstock.tiering.errors import BundleCorrupt, ReadError
from penstock.tiering.events import Part, Slot
from penstock.tiering.store.bundle.flash import BundleFlash
from penstock.tiering.store.bundle.manifest import Block
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.units import PAGE
from tests.support.backends import BACKENDS, Backend
from tests.support.bundle_blocks import fill, write

SOON = 10.0
"""Seconds after which a test gives up on what should take no time."""

Fault = Callable[[int], int]
Outcomes = queue.Queue[Exception | None]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    write(tmp_path / "bundle")
    with Bundle.open(tmp_path / "bundle") as opened:
        yield opened


def read(bundle: Bundle, backend: Backend, *blocks: Block) -> bytes:
    arena, views = Arena(sum(block.extent.length for block in blocks)), []
    for block in blocks:
        views.append(arena.view(sum(map(len, views)), block.extent.length))
    fill(bundle, blocks, views, backend.make(2))
    return bytes(arena.view(0, arena.length))


def part(block: Block, at: int = 0) -> Part:
    return Part(block.id, block.extent, Slot("", at, block.extent.length))


def failing(number: int, times: int) -> Fault:
    """The next ``times`` answers of the kernel are the error ``number``."""
    left = [times]

    def change(got: int) -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number))
        return got

    return change


def on_flash(bundle: Bundle, *blocks: Block) -> bytes:
    return b"".join(
        (bundle.folder / bundle.manifest.files[block.extent.file].name).read_bytes()[
            block.extent.offset : block.extent.end
        ]
        for block in blocks
    )


def test_neighbours_arrive_whole(bundle: Bundle, backend: Backend) -> None:
    blocks = bundle.manifest.blocks[1:4]
    assert read(bundle, backend, *blocks) == on_flash(bundle, *blocks)


def test_short_reads_are_gone_on_with(bundle: Bundle, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.fault(monkeypatch, lambda got: min(got, PAGE + 512))
    blocks = bundle.manifest.blocks[:5]
    assert read(bundle, backend, *blocks) == on_flash(bundle, *blocks)


def test_an_io_error_in_passing_is_forgiven_once(
    bundle: Bundle, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = bundle.manifest.blocks[5]
    with monkeypatch.context() as patch:
        backend.fault(patch, failing(errno.EIO, 1))
        assert read(bundle, backend, block) == on_flash(bundle, block)
    with monkeypatch.context() as patch:
        backend.fault(patch, failing(errno.EIO, 2))
        with pytest.raises(ReadError, match=r"data-00001.bin cannot be read at offset 0: Input/output error; check"):
            read(bundle, backend, block)


def test_other_errors_are_not_tried_again(bundle: Bundle, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.fault(monkeypatch, failing(errno.ENXIO, 1))
    with pytest.raises(ReadError, match="data-00000"):
        read(bundle, backend, bundle.manifest.blocks[0])


def test_an_error_behind_rows_is_forgiven_once_too(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    block, arena = bundle.manifest.blocks[2], Arena(PAGE)
    backend = BACKENDS["threads"]()
    with monkeypatch.context() as patch:
        backend.fault(patch, failing(errno.EIO, 1))
        bundle.read_rows(block, 0, arena.view(0, PAGE))
    assert arena.view(0, PAGE) == on_flash(bundle, block)[:PAGE]
    backend.fault(monkeypatch, failing(errno.EIO, 2))
    with pytest.raises(ReadError, match="data-00000"):
        bundle.read_rows(block, 0, arena.view(0, PAGE))


def test_wrong_bytes_are_named(bundle: Bundle, backend: Backend) -> None:
    good, bad = bundle.manifest.blocks[:2]
    path = bundle.folder / bundle.manifest.files[bad.extent.file].name
    content = bytearray(path.read_bytes())
    content[bad.extent.offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleCorrupt, match=f"{bad.id} at offset {bad.extent.offset} is altered"):
        read(bundle, backend, good, bad)


def test_a_file_cut_off_while_open_is_named(bundle: Bundle, backend: Backend) -> None:
    blocks = bundle.manifest.blocks[:5]
    os.truncate(bundle.folder / "data-00000.bin", blocks[2].extent.offset + PAGE)
    with pytest.raises(BundleCorrupt, match=f"{blocks[2].id} at offset {blocks[2].extent.offset} is cut off"):
        read(bundle, backend, *blocks)


def test_the_caller_neither_reads_nor_checks(bundle: Bundle, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    for name in ("fault", "explain"):
        real = getattr(Bundle, name)
        monkeypatch.setattr(Bundle, name, lambda *args, real=real: (threads.add(threading.get_ident()), real(*args))[1])
    read(bundle, backend, bundle.manifest.blocks[0])
    assert threads
    assert threading.get_ident() not in threads


def test_a_store_in_memory(backend: Backend) -> None:
    folder = Path(f"/dev/shm/penstock-test-{os.getpid()}")
    if not folder.parent.is_dir():
        pytest.skip("there is no /dev/shm")
    try:
        folder.mkdir()
        write(folder / "bundle")
        for direct in (None, False):
            with Bundle.open(folder / "bundle", direct=direct) as bundle:
                blocks = bundle.manifest.blocks[:5]
                assert read(bundle, backend, *blocks) == on_flash(bundle, *blocks)
                assert bundle.verify() == []
    finally:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()


def test_many_reads_at_once(bundle: Bundle, backend: Backend) -> None:
    """More than the depth, each into its own place."""
    blocks = bundle.manifest.blocks
    arena = Arena(4 * sum(block.extent.length for block in blocks))

    reads, at, reader = [], 0, backend.make(3)
    outcomes = Outcomes()
    try:
        flash = BundleFlash(bundle, reader)
        for block in blocks * 4:
            view = arena.view(at, block.extent.length)
            flash.read([part(block, at)], [view], outcomes.put)
            reads.append((block, view))
            at += block.extent.length
        assert [outcomes.get(timeout=SOON) for _ in reads] == [None] * len(reads)
        for block, view in reads:
            assert view == on_flash(bundle, block)
    finally:
        reader.close()


def test_a_second_chance_that_cannot_start_is_a_failure(
    bundle: Bundle, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is closed between the two; whoever waits must hear of it all the same."""
    (block, *_), outcomes = bundle.manifest.blocks, Outcomes()

    def fail(got: int) -> int:
        bundle.close()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    backend.fault(monkeypatch, fail)
    with closing(backend.make(1)) as reader:
        view = Arena(block.extent.length).view(0, block.extent.length)
        BundleFlash(bundle, reader).read([part(block)], [view], outcomes.put)
        assert "is closed" in str(outcomes.get(timeout=SOON))
    assert outcomes.empty()


def test_a_check_that_breaks_is_a_failure(bundle: Bundle, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    (block, *_), outcomes, bug = bundle.manifest.blocks, Outcomes(), MemoryError("no room for a checksum")

    def fault(*_: object) -> None:
        raise bug

    monkeypatch.setattr(bundle, "fault", fault)
    with closing(backend.make(1)) as reader:
        view = Arena(block.extent.length).view(0, block.extent.length)
        BundleFlash(bundle, reader).read([part(block)], [view], outcomes.put)
        assert outcomes.get(timeout=SOON) is bug
    assert outcomes.empty()


def test_a_closed_bundle_reads_nothing(bundle: Bundle, backend: Backend) -> None:
    bundle.close()
    with pytest.raises(ValueError, match="closed"):
        read(bundle, backend, bundle.manifest.blocks[0])
