"""The store: bundles are written whole or not at all, taken up where they were left, and read only if intact."""

import errno
import fcntl
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from penstock.kernels.arena import Arena
from penstock.kernels.directio import DirectFile, Segment
from penstock.kernels.directwrite import DirectWriter
from penstock.tiering.errors import BundleCorrupt, BundleError, BundleVersionError, ConfigError, FlashFull, ReadError
from penstock.tiering.store import folder, reader, writer
from penstock.tiering.store.manifest import Block, DataFile, Manifest, TensorSpec, place_tensors
from penstock.tiering.store.reader import Bundle
from penstock.tiering.store.writer import BundleWriter, publish
from penstock.tiering.units import PAGE, BlockId, Extent

SIZES = ((5000, 64), (100,), (70_000, 1), (4096,), (1, 2, 3), (30_000,), (9000, 9000), (12_288,))
"""Bytes of the tensors of each block; the last three blocks go into a second file."""


def plan() -> tuple[list[Block], list[DataFile]]:
    blocks, ends = [], [0, 0]
    for number, sizes in enumerate(SIZES):
        specs, length = place_tensors([(f"b{number}.t{n}", "uint8", (size,), size) for n, size in enumerate(sizes)])
        file = int(number >= 5)
        blocks.append(Block(BlockId("dense", f"b{number}"), Extent(file, ends[file], length), "", specs, number == 0))
        ends[file] += length
    return blocks, [DataFile(f"data-{n:05}.bin", end) for n, end in enumerate(ends)]


def content(spec: TensorSpec) -> bytes:
    return random.Random(spec.name).randbytes(spec.length)


def pieces(block: Block) -> Iterator[tuple[int, memoryview]]:
    for spec in block.tensors:
        data = memoryview(content(spec))
        yield spec.offset, data[:1000]
        if data[1000:]:
            yield spec.offset + 1000, data[1000:]


def write(target: Path, upto: int | None = None) -> BundleWriter:
    """Write the bundle, or its first ``upto`` blocks and leave it as a crash would."""
    blocks, files = plan()
    bundle = BundleWriter(target, blocks, files, staging=16 * 1024)
    for block in blocks[bundle.done : upto]:
        bundle.append(pieces(block))
    if upto is None:
        bundle.finish(Manifest("identity", "checkpoint", "uint8", "as-is", {}, tuple(files), ()))
    bundle.close()
    return bundle


def files_of(target: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(target.iterdir())}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def partial(target: Path) -> Path:
    return target.with_name("bundle.partial")


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    write(tmp_path / "whole")
    return files_of(tmp_path / "whole")


@pytest.fixture
def commit_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "COMMIT", 20_000)


def read(bundle: Bundle, blocks: Sequence[Block]) -> list[bytes]:
    arena = Arena(sum(block.extent.length for block in blocks))
    views, at = [], 0
    for block in blocks:
        views.append(arena.view(at, block.extent.length))
        at += block.extent.length
    bundle.read(blocks, views)
    return [bytes(view) for view in views]


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
    real = DirectFile.read
    monkeypatch.setattr(
        DirectFile, "read", lambda self, segments: (calls.append(len(segments)), real(self, segments))[1]
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


def test_an_error_of_the_drive_in_passing_is_forgiven_once(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(target)
    left = [1]
    real = DirectFile.read

    def fail(self: DirectFile, segments: Sequence[Segment]) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, "Input/output error")
        real(self, segments)

    monkeypatch.setattr(DirectFile, "read", fail)
    with Bundle.open(target) as bundle:
        block = bundle.manifest.blocks[0]
        read(bundle, [block])
        left[0] = 2
        with pytest.raises(ReadError, match=r"data-00000.bin cannot be read at offset 0"):
            read(bundle, [block])


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_flipped_bit_is_named_with_block_and_offset(number: int, where: str, target: Path) -> None:
    write(target)
    with Bundle.open(target) as bundle:
        block = bundle.manifest.blocks[number]
        path = target / f"data-{block.extent.file:05}.bin"
        data = bytearray(path.read_bytes())
        data[block.extent.offset if where == "first" else block.extent.end - 1] ^= 16
        path.write_bytes(data)
        says = f"{path.name}: block {block.id} at offset {block.extent.offset} is altered"
        with pytest.raises(BundleCorrupt, match=says):
            read(bundle, [block])
        (found,) = bundle.verify()
        assert says in str(found)
        for other in bundle.manifest.blocks:
            if other != block:
                read(bundle, [other])


@pytest.mark.parametrize("number", range(5))
def test_a_truncated_file_is_named_with_block_and_offset(number: int, target: Path) -> None:
    write(target)
    bundle = Bundle.open(target)
    block = bundle.manifest.blocks[number]
    os.truncate(target / "data-00000.bin", block.extent.end - 1)
    says = f"data-00000.bin: block {block.id} at offset {block.extent.offset} is cut off"
    with pytest.raises(BundleCorrupt, match=says):
        Bundle.open(target)
    with pytest.raises(BundleCorrupt, match=says):
        read(bundle, bundle.manifest.blocks[:5])
    found = bundle.verify()
    assert len(found) == 5 - number
    assert says in str(found[0])


def test_a_missing_file_is_named(target: Path) -> None:
    write(target)
    (target / "data-00001.bin").unlink()
    with pytest.raises(BundleCorrupt, match=r"data-00001.bin is missing"):
        Bundle.open(target)


def test_verify_takes_large_blocks_in_steps(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(target)
    monkeypatch.setattr(reader, "_STEP", 2 * PAGE)
    lengths: list[int] = []
    real = DirectFile.read
    monkeypatch.setattr(
        DirectFile, "read", lambda self, s: (lengths.append(sum(x.buffer.nbytes for x in s)), real(self, s))[1]
    )
    with Bundle.open(target) as bundle:
        assert bundle.verify() == []
        assert max(lengths) == 2 * PAGE
        assert sum(lengths) == bundle.manifest.total_bytes


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path, target: Path) -> None:
    assert not Bundle.is_bundle(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path)
    write(target)
    assert Bundle.is_bundle(target)


@pytest.mark.parametrize(
    ("old", "new", "kind", "says"),
    [
        ('"version":1', '"version":2', BundleVersionError, "upgrade penstock"),
        ("data-00000.bin", "../data-0.bin", BundleCorrupt, "outside of the bundle"),
        ("penstock-bundle", "other", BundleCorrupt, "damaged"),
        ("{", "\udcff", BundleCorrupt, "damaged"),
    ],
)
def test_a_manifest_that_is_wrong(old: str, new: str, kind: type[Exception], says: str, target: Path) -> None:
    write(target)
    path = target / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1), errors="surrogateescape")
    with pytest.raises(kind, match=says) as caught:
        Bundle.open(target)
    assert "manifest.json" in str(caught.value)


# --- the folder -----------------------------------------------------------------------------------------------------


def test_the_store_is_for_its_user_only(tmp_path: Path) -> None:
    made = folder.prepare(tmp_path / "a" / "store")
    assert made.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the store .*file cannot be made"):
        folder.prepare(tmp_path / "file")


def test_room_counts_the_drive_and_the_limit(target: Path, partial: Path) -> None:
    (target.parent / "other").mkdir()
    (target.parent / "other" / "data").write_bytes(bytes(1000))
    folder.ensure_room(target, 500, 1500)
    with pytest.raises(FlashFull, match=r"holds 1000 B already and may hold 1\.46 KiB"):
        folder.ensure_room(target, 501, 1500)
    with pytest.raises(FlashFull, match="its drive has"):
        folder.ensure_room(target, 1 << 60, None)
    partial.mkdir()
    (partial / "data").write_bytes(bytes(400))
    # Bytes of an interrupted packing are there already.
    folder.ensure_room(target, 500, 1500)
    with pytest.raises(FlashFull):
        folder.ensure_room(target, 501, 1500)


def test_one_process_writes_at_a_time(target: Path) -> None:
    with open(target.with_name("bundle.lock"), "w") as other:
        with folder.locked(target), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
