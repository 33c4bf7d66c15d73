"""Room in files: what is put there stays, is not resident, and is gone with its tensor."""

from pathlib import Path

import pytest
import torch

from penstock.runtime.packing.stream.scratch_file import ScratchFile
from penstock.tiering.errors import FlashFull
from penstock.tiering.units import MiB


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_what_is_let_go_stays_as_it_was(tmp_path: Path) -> None:
    scratch = ScratchFile(tmp_path, MiB)
    small, large = scratch.room(MiB), scratch.room(48 * MiB)
    before = resident()
    wanted = torch.randint(0, 256, (64,), dtype=torch.uint8)
    large.view(-1, 64)[:] = wanted
    small.fill_(7)
    assert resident() - before > 40 * MiB
    scratch.let_go()
    assert resident() - before < 8 * MiB
    assert torch.equal(large.view(-1, 64), wanted.expand(len(large) // 64, 64))
    assert bool((small == 7).all())


def test_files_have_no_name_and_go_with_their_tensors(small_drive: Path) -> None:
    scratch = ScratchFile(small_drive, 0)
    for _ in range(20):  # far more than the drive has, if any stayed
        scratch.room(MiB // 2).fill_(1)
    assert [path.name for path in small_drive.iterdir() if path.is_file()] == []


def test_a_drive_without_room_is_said_before_anything_is_written(small_drive: Path) -> None:
    with pytest.raises(FlashFull, match=r"no room for 64\.00 MiB.*raise host_memory"):
        ScratchFile(small_drive, MiB).room(64 * MiB)
