"""Calls that other systems lack: what stands for them, tried by taking them away."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import penstock
from penstock.kernels.io import posix
from penstock.kernels.io.directio import DirectFile, Segment
from penstock.kernels.io.directwrite import DirectWriter
from penstock.kernels.memory.arena import Arena
from penstock.kernels.memory.page import PAGE

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "examples" / "tiny-moe"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("O_DIRECT", "posix_fadvise", "posix_fallocate", "fdatasync", "preadv"):
        monkeypatch.delattr(os, name)


@pytest.mark.usefixtures("without")
def test_without_direct_io_files_are_read_and_written_through_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    arena = Arena(2 * PAGE)
    arena.view(0, PAGE)[:] = bytes(range(256)) * (PAGE // 256)
    with DirectWriter(path) as writer:
        writer.write(arena.view(0, PAGE))
        writer.sync()
        assert not writer.direct
    with DirectFile(path) as file:
        file.read([Segment(0, arena.view(PAGE, PAGE))])
        assert not file.direct
    assert arena.view(PAGE, PAGE) == arena.view(0, PAGE)
    with pytest.raises(OSError, match="no direct I/O"):
        DirectFile(path, direct=True)


@pytest.mark.parametrize("there", [0, 5, 3 << 20])
@pytest.mark.parametrize("offset", [0, 3, 2 << 20])
@pytest.mark.usefixtures("without")
def test_room_is_reserved_by_zeros_and_what_is_there_stays(there: int, offset: int, tmp_path: Path) -> None:
    path, length = tmp_path / "file", (1 << 20) + 7
    path.write_bytes(b"x" * there)
    descriptor = os.open(path, os.O_RDWR)
    posix.reserve(descriptor, offset, length)
    os.close(descriptor)
    found = path.read_bytes()
    assert found[:there] == b"x" * there
    assert len(found) == max(there, offset + length)
    assert not any(found[there:])


@pytest.mark.usefixtures("without")
def test_without_room_to_reserve_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises(OSError, match="full"):
        posix.reserve(descriptor, 0, 1)
    os.close(descriptor)


@pytest.mark.usefixtures("without")
def test_data_are_synced_as_far_as_the_system_can(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[object] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(("fsync", descriptor)))
    monkeypatch.setattr(posix.fcntl, "fcntl", lambda *arguments: synced.append(arguments))
    posix.sync_data(3)
    monkeypatch.setattr(posix, "_FLUSH", 51)  # macOS has it
    posix.sync_data(3)
    assert synced == [("fsync", 3), (3, 51)]


def test_a_lock_is_for_one_descriptor_at_a_time(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert posix.lock(first, wait=False)
    assert not posix.lock(second, wait=False)
    os.close(first)
    assert posix.lock(second, wait=True)
    os.close(second)


def test_a_model_runs_where_the_calls_are_missing(tmp_path: Path) -> None:
    """With the tokens that it has here."""
    child = [sys.executable, str(ROOT / "tests" / "support" / "other_system.py"), str(MODEL), str(tmp_path / "there")]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    out = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True, timeout=300, env=environment).stdout
    found = json.loads(out.splitlines()[-1])
    assert not found["direct"]
    with penstock.load(MODEL, host_memory="8MiB", store=tmp_path / "here") as model:
        import torch

        prompt = torch.tensor([found["tokens"][:-12]])
        assert model.generate(prompt, max_new_tokens=12, do_sample=False)[0].tolist() == found["tokens"]


def test_on_macos_the_cache_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(posix.fcntl, "fcntl", lambda *arguments: asked.append(arguments))
    posix.keep_uncached(3)
    monkeypatch.setattr(posix, "_UNCACHED", 48)
    posix.keep_uncached(3)
    assert asked == [(3, 48, 1)]
