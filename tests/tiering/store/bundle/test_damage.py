"""The store: what is damaged, missing or full is said, with file, block and offset."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from penstock.kernels.io.directio import DirectFile
from penstock.tiering.errors import BundleCorrupt, BundleError, BundleVersionError, ConfigError, FlashFull
from penstock.tiering.store.bundle import data_files, folder
from penstock.tiering.store.bundle.manifest import encode, signed
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.units import PAGE
from tests.support.bundle_blocks import SIZES, read, write

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
    monkeypatch.setattr(data_files, "_STEP", 2 * PAGE)
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
        ('"version":1', '"version":4', BundleVersionError, "upgrade penstock"),
        ("data-00000.bin", "data-0.bin", BundleCorrupt, "checksum"),
        ("penstock-bundle", "other", BundleCorrupt, "not a penstock manifest"),
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


def test_a_manifest_cannot_name_files_elsewhere(target: Path) -> None:
    write(target)
    path = target / "manifest.json"
    document = json.loads(path.read_text().replace("data-00000.bin", "../data-0.bin", 1))
    path.write_text(encode(signed(document)))
    with pytest.raises(BundleCorrupt, match="is not named as in data-00000"):
        Bundle.open(target)


# --- the folder -----------------------------------------------------------------------------------------------------


def test_the_store_is_for_its_user_only(tmp_path: Path) -> None:
    made = folder.prepare(tmp_path / "a" / "store")
    assert made.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the store .*file cannot be made"):
        folder.prepare(tmp_path / "file")


def test_room_counts_the_drive_and_the_limit(target: Path, partial: Path) -> None:
    store = target.parent
    (store / "other").mkdir()
    (store / "other" / "data").write_bytes(bytes(1000))
    folder.ensure_room(store, {partial: 500}, 1500)
    with pytest.raises(FlashFull, match=r"holds 1000 B already and may hold 1\.46 KiB"):
        folder.ensure_room(store, {partial: 501}, 1500)
    with pytest.raises(FlashFull, match="its drive has"):
        folder.ensure_room(store, {partial: 1 << 60}, None)
    partial.mkdir()
    (partial / "data").write_bytes(bytes(400))
    # Bytes of an interrupted packing are there already.
    folder.ensure_room(store, {partial: 500}, 1500)
    with pytest.raises(FlashFull):
        folder.ensure_room(store, {partial: 501}, 1500)


def test_room_counts_every_drive_and_what_lies_there(tmp_path: Path, partial: Path) -> None:
    store, stripe = partial.parent / "store", partial.parent / "stripe"
    for place in (store, stripe / "part", stripe / "old", store / "nested"):
        place.mkdir(parents=True)
    (stripe / "old" / "data").write_bytes(bytes(600))
    (stripe / "part" / "data").write_bytes(bytes(100))
    needs = {store / "b.partial": 500, stripe / "part": 300}
    parts = [stripe / "part", stripe / "old", store / "nested"]  # the last is counted with the store
    folder.ensure_room(store, needs, 500 + 200 + 700, elsewhere=parts)
    with pytest.raises(FlashFull, match="holds 700 B already"):
        folder.ensure_room(store, needs, 500 + 200 + 699, elsewhere=parts)
    # Two folders on one drive need their sum.
    free = os.statvfs(store).f_bavail * os.statvfs(store).f_frsize
    with pytest.raises(FlashFull, match="its drive has"):
        folder.ensure_room(store, {store / "b": free * 2 // 3, stripe / "c": free * 2 // 3}, None)


def test_one_process_writes_at_a_time(target: Path) -> None:
    with open(target.with_name("bundle.lock"), "w") as other:
        with folder.locked(target), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with folder.locked(target) as mine, folder.locked(target, wait=False) as twice:
            assert (mine, twice) == (True, False)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
