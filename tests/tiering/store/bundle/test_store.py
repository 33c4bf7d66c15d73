"""The store: bundles are written whole or not at all, taken up where they were left, and read back."""

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.kernels.io.directio import DirectFile
from penstock.kernels.io.directwrite import DirectWriter
from penstock.kernels.memory.arena import Arena
from penstock.tiering.errors import BundleError, FlashFull
from penstock.tiering.store.bundle import journal, writer
from penstock.tiering.store.bundle.manifest import Block, Manifest
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.store.bundle.writer import BundleWriter, publish
from penstock.tiering.units import PAGE, BlockId
from tests.support.bundle_blocks import SIZES, content, files_of, pieces, plan, read, write


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    write(tmp_path / "whole")
    return files_of(tmp_path / "whole")


@pytest.fixture
def commit_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "COMMIT", 20_000)


# --- writing and reading --------------------------------------------------------------------------------------------


def test_what_is_written_is_read(target: Path) -> None:
    write(target)
    with Bundle.open(target) as bundle:
        assert [block.id for block in bundle.manifest.blocks] == [block.id for block in plan()[0]]
        for block in bundle.manifest.blocks:
            (data,) = read(bundle, [block])
            expected = bytearray(block.extent.length)
            for spec in block.tensors:
                expected[spec.offset : spec.offset + spec.length] = content(spec)
            assert data == expected
        assert bundle.verify() == []


def test_neighbours_are_read_at_once(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(target)
    calls: list[int] = []
    real = DirectFile.begin
    monkeypatch.setattr(
        DirectFile, "begin", lambda self, segments: (calls.append(len(segments)), real(self, segments))[1]
    )
    with Bundle.open(target) as bundle:
        blocks = bundle.manifest.blocks[1:4]
        together = read(bundle, blocks)
        assert calls == [3]
        assert together == [read(bundle, [block])[0] for block in blocks]


def test_rows_are_pages_of_a_block(target: Path) -> None:
    write(target)
    with Bundle.open(target) as bundle:
        block = bundle.manifest.blocks[2]
        (data,) = read(bundle, [block])
        page = Arena(2 * PAGE).view(0, 2 * PAGE)
        bundle.read_rows(block, 3, page)
        assert bytes(page) == data[3 * PAGE : 5 * PAGE]
        for first in (-1, block.extent.length // PAGE - 1):
            with pytest.raises(ValueError, match="outside of block"):
                bundle.read_rows(block, first, page)


def test_a_closed_bundle_reads_nothing(target: Path) -> None:
    write(target)
    bundle = Bundle.open(target)
    bundle.close()
    bundle.close()
    with pytest.raises(ValueError, match="closed"):
        read(bundle, bundle.manifest.blocks[:1])


def test_buffered_writing_and_reading_give_the_same(target: Path, whole: dict[str, bytes]) -> None:
    blocks, files = plan()
    bundle = BundleWriter(target, blocks, files, staging=16 * 1024, direct=False)
    for block in blocks:
        bundle.append(pieces(block))
    bundle.finish(Manifest("identity", "checkpoint", "uint8", "as-is", {}, tuple(files), ()))
    assert files_of(target) == whole
    with Bundle.open(target, direct=False) as opened:
        assert opened.verify() == []


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("commit_often")
@pytest.mark.parametrize("upto", range(len(SIZES) + 1))
def test_an_interrupted_writer_is_taken_up(upto: int, target: Path, partial: Path, whole: dict[str, bytes]) -> None:
    write(target, upto)
    assert not target.exists()
    write(target, min(upto + 2, len(SIZES)))
    again = write(target)
    assert again.done == len(SIZES)
    assert files_of(target) == whole
    assert not partial.exists()


@pytest.mark.usefixtures("commit_often")
def test_what_is_journaled_is_not_written_again(target: Path, partial: Path) -> None:
    write(target, len(SIZES))
    first = partial / "data-00000.bin"
    before = first.stat().st_mtime_ns
    blocks, files = plan()
    again = BundleWriter(target, blocks, files)
    assert again.done >= 5
    assert again.done_bytes == sum(block.extent.length for block in blocks[: again.done])
    assert first.stat().st_mtime_ns == before


@pytest.mark.usefixtures("commit_often")
def test_a_torn_journal_is_cut(target: Path, partial: Path, whole: dict[str, bytes]) -> None:
    write(target, len(SIZES))
    saved = files_of(partial)
    journal = saved["journal.jsonl"]
    assert journal.count(b"\n") >= 6
    for cut in range(0, len(journal), 7):
        for tail in (b"", b"\0" * 9, b'["x"]\n', b"\xff\n"):
            for name, data in saved.items():
                (partial / name).write_bytes(data)
            (partial / "journal.jsonl").write_bytes(journal[:cut] + tail)
            blocks, files = plan()
            bundle = BundleWriter(target, blocks, files)
            assert bundle.done == journal[:cut].count(b"\n"), (cut, tail)
            bundle.close()
    write(target)
    assert files_of(target) == whole


@pytest.mark.usefixtures("commit_often")
def test_data_that_is_shorter_than_its_journal_is_written_again(
    target: Path, partial: Path, whole: dict[str, bytes]
) -> None:
    write(target, len(SIZES))
    os.truncate(partial / "data-00000.bin", 3 * PAGE - 1)
    blocks, files = plan()
    assert BundleWriter(target, blocks, files).done == 1
    assert not (partial / "data-00001.bin").exists()
    write(target)
    assert files_of(target) == whole


@pytest.mark.usefixtures("commit_often")
def test_blocks_of_another_plan_are_not_taken_over(target: Path) -> None:
    write(target, 4)
    blocks, files = plan()
    blocks[1] = replace(blocks[1], id=BlockId("dense", "other"))
    assert BundleWriter(target, blocks, files).done == 1


@pytest.mark.usefixtures("commit_often")
def test_data_is_durable_before_it_is_journaled(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable, journaled = [0], [0]
    real_sync, real_append = DirectWriter.sync, journal.append

    def sync(self: DirectWriter) -> None:
        real_sync(self)
        durable[0] = self.position

    def append(path: Path, blocks: Sequence[Block]) -> None:
        assert durable[0] >= blocks[-1].extent.end
        journaled[0] += len(blocks)
        durable[0] = 0
        real_append(path, blocks)

    monkeypatch.setattr(DirectWriter, "sync", sync)
    monkeypatch.setattr(journal, "append", append)
    write(target)
    assert journaled[0] == len(SIZES)


def test_a_crash_before_the_last_rename_is_finished(
    target: Path, partial: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish", lambda _: None)
        write(target)
    assert (partial / "manifest.json").exists()
    assert publish(target)
    assert files_of(target) == whole
    assert publish(target)


def test_nothing_is_published_without_manifest(target: Path, partial: Path) -> None:
    assert not publish(target)
    write(target, 3)
    assert not publish(target)
    assert partial.exists()


# --- drives that fail -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("commit_often")
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, FlashFull), (errno.EDQUOT, FlashFull), (errno.EIO, BundleError)]
)
def test_a_write_that_fails_is_named_and_can_be_resumed(
    number: int, kind: type[Exception], target: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [5]
    real = DirectWriter.write

    def fail(self: DirectWriter, data: memoryview) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(DirectWriter, "write", fail)
        with pytest.raises(kind, match=r"bundle\.partial"):
            write(target)
    assert not target.exists()
    write(target)
    assert files_of(target) == whole
