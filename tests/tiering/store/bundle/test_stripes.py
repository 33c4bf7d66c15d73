"""The folders on other drives: which drive they are on, and what may be removed there."""

import os
from pathlib import Path

import pytest

from penstock.tiering.errors import ConfigError
from penstock.tiering.store.bundle.folder import locked
from penstock.tiering.store.bundle.stripes import (
    drive_under,
    on_one_drive,
    part_of,
    parts_of,
    prepare_stripes,
    remove,
    sweep,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def stripe(tmp_path: Path) -> Path:
    (tmp_path / "stripe").mkdir()
    return tmp_path / "stripe"


def test_partitions_of_a_drive_are_that_drive(tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    assert drive_under(tmp_path, tmp_path / "none") == number
    drive = tmp_path / "devices" / "nvme0n1"
    (drive / "nvme0n1p2").mkdir(parents=True)
    known = tmp_path / "block"
    known.mkdir()
    (known / number).symlink_to(drive / "nvme0n1p2")
    assert drive_under(tmp_path, known) == str(drive / "nvme0n1p2")
    (drive / "nvme0n1p2" / "partition").write_text("2")
    assert drive_under(tmp_path, known) == str(drive)


def test_folders_are_on_one_drive_only_if_they_are_there(tmp_path: Path, store: Path, stripe: Path) -> None:
    assert on_one_drive(store, stripe)
    assert not on_one_drive(store, tmp_path / "none")


def test_stripes_are_made_for_their_user_only(store: Path, tmp_path: Path) -> None:
    (made,) = prepare_stripes(store, [tmp_path / "a" / "b"])
    assert made.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="is the same folder as"):
        prepare_stripes(store, [made, tmp_path / "a" / ".." / "a" / "b"])


def test_a_store_that_moves_keeps_its_parts(store: Path, stripe: Path, tmp_path: Path) -> None:
    assert parts_of(store, stripe) == []
    assert not list(store.iterdir()), "looking writes nothing"
    part = part_of(store / "bundle", stripe)
    part.mkdir()
    moved = store.rename(tmp_path / "moved")
    store.mkdir()
    assert part_of(moved / "bundle", stripe) == part
    assert parts_of(moved, stripe) == [part]
    assert part_of(store / "bundle", stripe) != part, "a new store at the old place is another"


def test_only_what_no_bundle_needs_is_swept(store: Path, stripe: Path) -> None:
    parts = {name: part_of(store / name, stripe) for name in ("whole", "begun", "packing", "gone")}
    for part in parts.values():
        part.mkdir()
    (store / "whole").mkdir()
    (store / "begun.partial").mkdir()
    with locked(store / "packing"):
        sweep(store, [stripe])
    assert {*stripe.iterdir()} == {parts["whole"], parts["begun"], parts["packing"]}
    sweep(store, [stripe])
    assert {*stripe.iterdir()} == {parts["whole"], parts["begun"]}


def test_only_parts_of_the_bundle_are_removed(store: Path, stripe: Path) -> None:
    mine, other = part_of(store / "mine", stripe), part_of(store / "other", stripe)
    for folder in (mine, other):
        folder.mkdir()
    remove(store / "mine", [str(mine), str(other), str(stripe), "/nowhere"])
    assert [*stripe.iterdir()] == [other]
