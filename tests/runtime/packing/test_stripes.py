"""Bundles over several drives: dealt by speed, computed on bit for bit, taken up after a kill, and what goes wrong."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from penstock.runtime.machine import drives
from penstock.tiering.errors import BundleCorrupt, BundleError, ConfigError, FlashFull
from penstock.tiering.store.bundle import journal, writer
from penstock.tiering.store.bundle.reader import Bundle
from tests.support.bundles import assert_equal, files_of, packed
from tests.support.engines import engine_of
from tests.support.logits import least_budget, logits
from tests.support.packing import FillUp, child
from tests.support.tiny_models import save_tiny


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny("qwen3_moe", tmp_path / "checkpoint")


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the speed that is measured of folders by name; other drives have 1000."""

    def set_speeds(**known: int) -> None:
        monkeypatch.setattr(drives, "drive_speed", lambda folder, *_, **__: float(known.get(folder.name, 1000)))

    set_speeds()
    return set_speeds


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder on a file system in memory."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no file system in memory")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def data_files(*folders: Path) -> dict[str, bytes]:
    return {name: data for folder in folders for name, data in files_of(folder).items() if name.endswith(".bin")}


# --- what is where ---------------------------------------------------------------------------------------------------


def test_blocks_are_dealt_by_speed_and_are_those_of_a_plain_bundle(
    source: Path, tmp_path: Path, speeds: Callable[..., None]
) -> None:
    speeds(store=3000, b=1000)
    with packed(source, tmp_path / "store", stripes=[tmp_path / "b"]) as bundle:
        manifest = bundle.manifest
        experts = [manifest.drive_of(block) for block in manifest.blocks if block.id.kind == "expert"]
        assert experts == [0, 0, 1, 0] * 4
        here, there = manifest.drive_bytes
        assert here + there == manifest.total_bytes
        own, part = manifest.places(bundle.folder)
        assert own == bundle.folder
        assert part.parent == tmp_path / "b"
        assert part.stat().st_mode & 0o777 == part.parent.stat().st_mode & 0o777 == 0o700
        assert sum(path.stat().st_size for path in part.iterdir()) == there
        assert bundle.verify() == []
        assert_equal(bundle, source)
        with packed(source, tmp_path / "plain") as plain:
            assert plain.manifest.identity == manifest.identity
            assert [(b.id, b.checksum) for b in plain.manifest.blocks] == [(b.id, b.checksum) for b in manifest.blocks]


def test_a_bundle_that_is_there_is_taken_as_it_is(source: Path, tmp_path: Path, speeds: Callable[..., None]) -> None:
    first = packed(source, tmp_path / "store", stripes=[tmp_path / "b"])
    again = packed(source, tmp_path / "store", stripes=[tmp_path / "c", tmp_path / "d"])
    plain = packed(source, tmp_path / "store")
    assert first.manifest == again.manifest == plain.manifest
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["qwen3_moe", "llama"])
def test_logits_are_the_same_bits_from_three_places(
    name: str, tmp_path: Path, in_memory: Path, speeds: Callable[..., None]
) -> None:
    folder, store = save_tiny(name, tmp_path / "checkpoint"), tmp_path / "store"
    reference = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    expected = logits(reference)
    least = least_budget(folder, tmp_path / "plain")
    for budget in (least, 2 * least, 1 << 30):
        options: dict[str, Any] = {"store": store, "store_stripes": [tmp_path / "b", in_memory], "host_memory": budget}
        with penstock.load(folder, attn_implementation="eager", **options) as model:
            found = logits(model)
            engine_of(model).check_integrity()
            stats = model.penstock.stats()
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), budget
        assert len(stats.drive_bytes) == 3
        assert all(stats.drive_bytes)
        assert sum(stats.drive_bytes) == stats.flash_bytes_read


def test_what_is_streamed_beside_pinned_weights_is_on_both_drives(tmp_path: Path, speeds: Callable[..., None]) -> None:
    """Half of equal layers on two equal drives: those that stay must not be all on one."""
    source = save_tiny("llama", tmp_path / "checkpoint", num_hidden_layers=8, intermediate_size=64)
    options: dict[str, Any] = {"store": tmp_path / "store", "store_stripes": [tmp_path / "b"], "host_memory": 800_000}
    with penstock.load(source, **options) as model:
        streamed = set(model.penstock.placement.streamed)
        manifest = engine_of(model).bundle.manifest
        on = [manifest.drive_of(block) for block in manifest.blocks if block.id in streamed]
        assert len(on) > 8
        assert 0.3 < sum(on) / len(on) < 0.7


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_a_killed_packing_goes_on_with_the_speeds_it_began_with(
    source: Path, tmp_path: Path, speeds: Callable[..., None]
) -> None:
    speeds(expected=2000, b=1000)
    whole = packed(source, tmp_path / "expected", stripes=[tmp_path / "b"])
    expected = data_files(*whole.manifest.places(whole.folder))
    assert len(expected) == 2
    points = ["9", "17", "25", "manifest", "rename"]
    child("kill", source, tmp_path, *points, "--stripe", tmp_path / "second", 2000, 1000)
    left = {point: sum(path.stat().st_size for path in (tmp_path / point).rglob("*.bin")) for point in points}
    assert len(set(left.values())) > 3, "the kills came at different stages"
    speeds(**dict.fromkeys(points, 1))
    for point in points:
        stripe = tmp_path / "second" / point
        with packed(source, tmp_path / point, stripes=[stripe]) as bundle:
            places = bundle.manifest.places(bundle.folder)
            assert data_files(*places) == expected, point
            assert bundle.verify() == []
        assert not list((tmp_path / point).glob("*.partial"))
        assert not (bundle.folder / journal.DRIVES).exists()
        assert [*stripe.iterdir()] == [places[1]]


def test_an_interrupted_packing_with_other_stripes_begins_anew(
    source: Path, tmp_path: Path, speeds: Callable[..., None]
) -> None:
    child("kill", source, tmp_path, "20", "--stripe", tmp_path / "second", 1000, 1000)
    old = tmp_path / "second" / "20"
    assert [*old.rglob("*.bin")]
    with packed(source, tmp_path / "20", stripes=[tmp_path / "c"]) as bundle:
        assert bundle.verify() == []
        assert bundle.manifest.places(bundle.folder)[1].parent == tmp_path / "c"
    assert not [*old.iterdir()], "what was begun there is gone"


def test_of_striped_packings_at_once_one_writes(source: Path, tmp_path: Path) -> None:
    assert child("together", source, tmp_path / "store", 3, "--stripe", tmp_path / "b", 1, 1).split() == ["1"]
    with packed(source, tmp_path / "store") as bundle:
        assert len(bundle.manifest.drives) == 2
        assert bundle.verify() == []


def test_what_a_deleted_bundle_left_goes_and_nothing_else(
    source: Path, tmp_path: Path, speeds: Callable[..., None]
) -> None:
    stripe = tmp_path / "b"
    gone = packed(source, tmp_path / "store", stripes=[stripe])
    kept = packed(source, tmp_path / "store", stripes=[stripe], dtype=torch.bfloat16)
    other = packed(source, tmp_path / "other", stripes=[stripe])
    (stripe / "notes.txt").write_text("mine")
    shutil.rmtree(gone.folder)
    third = packed(source, tmp_path / "store", stripes=[stripe], dtype=torch.float16)
    parts = {bundle.manifest.places(bundle.folder)[1] for bundle in (kept, other, third)}
    assert len(parts) == 3
    assert {*stripe.iterdir()} == parts | {stripe / "notes.txt"}
    for bundle in (kept, other, third):
        assert bundle.verify() == []


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_folders_that_are_the_same_are_refused(source: Path, tmp_path: Path, speeds: Callable[..., None]) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    for wrong in ([tmp_path / "b", tmp_path / "link"], [tmp_path / "store"]):
        with pytest.raises(ConfigError, match=r"is the same folder as .*\[store\] stripes"):
            packed(source, tmp_path / "store", stripes=wrong)
    assert not list((tmp_path / "store").glob("*.partial"))


def test_a_stripe_below_the_store_works(source: Path, tmp_path: Path, speeds: Callable[..., None]) -> None:
    with packed(source, tmp_path / "store", stripes=[tmp_path / "store" / "second"]) as bundle:
        assert_equal(bundle, source)


def test_a_stripe_that_cannot_be_made_is_named(source: Path, tmp_path: Path, speeds: Callable[..., None]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the stripe .*file/b cannot be made: .*another \[store\] stripes"):
        packed(source, tmp_path / "store", stripes=[tmp_path / "file" / "b"])


def test_a_drive_that_is_not_there_is_named(source: Path, tmp_path: Path, speeds: Callable[..., None]) -> None:
    with packed(source, tmp_path / "store", stripes=[tmp_path / "b"]) as bundle:
        part = bundle.manifest.places(bundle.folder)[1]
    part.rename(tmp_path / "unmounted")
    with pytest.raises(BundleError, match=rf"{re.escape(str(part))}, which is not there; mount that drive") as caught:
        penstock.load(bundle.folder)
    assert not isinstance(caught.value, BundleCorrupt)
    (tmp_path / "unmounted").rename(part)
    Bundle.open(bundle.folder).close()


def test_a_file_that_is_cut_off_or_missing_there_is_named(
    source: Path, tmp_path: Path, speeds: Callable[..., None]
) -> None:
    with packed(source, tmp_path / "store", stripes=[tmp_path / "b"]) as bundle:
        (file,) = bundle.manifest.places(bundle.folder)[1].iterdir()
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        (found,) = bundle.verify()
        assert str(file) in str(found)
    os.truncate(file, len(data) - 1)
    with pytest.raises(BundleCorrupt, match=rf"{re.escape(str(file))}: block .* is cut off"):
        Bundle.open(bundle.folder)
    file.unlink()
    with pytest.raises(BundleCorrupt, match=rf"{re.escape(str(file))} is missing"):
        Bundle.open(bundle.folder)


def test_a_second_drive_without_room_is_said_before_anything_is_written(
    tmp_path: Path, small_drive: Path, speeds: Callable[..., None]
) -> None:
    source = save_tiny("qwen3_moe", tmp_path / "checkpoint", torch.float64)
    speeds(b=1_000_000)
    with pytest.raises(FlashFull, match=r"drive/b, its drive has .*\[store\] stripes"):
        packed(source, tmp_path / "store", stripes=[small_drive / "b"])
    assert not list((tmp_path / "store").glob("*.partial"))
    speeds(b=300)  # what it gets of less than 1.5 MiB then fits
    packed(source, tmp_path / "store", stripes=[small_drive / "b"]).close()


def test_a_second_drive_that_fills_up_leaves_a_packing_to_go_on_with(
    source: Path, tmp_path: Path, small_drive: Path, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "COMMIT", 40_000)
    fill_up = FillUp(small_drive, 12)
    with pytest.raises(FlashFull, match=rf"the drive of {re.escape(str(small_drive))}/b/.* is full"):
        packed(source, tmp_path / "store", stripes=[small_drive / "b"], progress=fill_up)
    fill_up.filler.unlink()
    with packed(source, tmp_path / "store", stripes=[small_drive / "b"]) as bundle:
        assert bundle.verify() == []
        assert_equal(bundle, source)


def test_the_limit_on_flash_counts_all_drives(source: Path, tmp_path: Path, speeds: Callable[..., None]) -> None:
    store, stripe = tmp_path / "store", tmp_path / "b"
    first = packed(source, store, stripes=[stripe]).manifest.total_bytes
    second = packed(source, tmp_path / "other", dtype=torch.float64).manifest.total_bytes
    with pytest.raises(FlashFull, match="holds"):
        packed(source, store, stripes=[stripe], dtype=torch.float64, flash_limit=first + second)  # and a manifest
    packed(source, store, stripes=[stripe], dtype=torch.float64, flash_limit=first + second + 100_000).close()
