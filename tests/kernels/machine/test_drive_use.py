"""Bytes that a drive and this process have moved."""

import os
from pathlib import Path

import pytest

from penstock.kernels.io.directwrite import DirectWriter
from penstock.kernels.machine.drive_use import read_drive_use
from penstock.kernels.memory.arena import Arena


def test_what_this_process_writes_is_counted_as_its_own(tmp_path: Path) -> None:
    before = read_drive_use(tmp_path)
    if before is None:
        pytest.skip("this system does not count, or the folder is on no single drive")
    size = 4 << 20
    content = Arena(size).view(0, size)
    with DirectWriter(tmp_path / "file") as writer:
        writer.write(content)
        writer.sync()
    after = read_drive_use(tmp_path)
    assert after is not None
    assert after.own - before.own >= size
    assert after.everyone - before.everyone >= size


@pytest.mark.parametrize("place", ["/proc", "/no/where"])
def test_folders_that_are_on_no_drive_say_nothing(place: str) -> None:
    assert read_drive_use(Path(place)) is None


def test_a_partition_is_a_part_of_its_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts are those of the whole drive: what others do on another partition slows it down as well."""
    device = os.stat(tmp_path).st_dev
    drive = tmp_path / "sda"
    (drive / "sda1").mkdir(parents=True)
    for folder, sectors in ((drive, "20"), (drive / "sda1", "10")):
        (folder / "stat").write_text(f"1 0 {sectors} 0 1 0 {sectors} 0 0 0 0")
    (drive / "sda1" / "partition").write_text("1")
    monkeypatch.setattr("penstock.kernels.machine.drive_use._BLOCK", tmp_path / "block")
    monkeypatch.setattr("penstock.kernels.machine.drive_use._OWN", tmp_path / "io")
    (tmp_path / "io").write_text("read_bytes: 3\nwrite_bytes: 4\n")
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / f"{os.major(device)}:{os.minor(device)}").symlink_to(drive / "sda1")
    assert read_drive_use(tmp_path) == (40 * 512, 7)
