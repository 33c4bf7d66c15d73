"""What several tests share: checkpoints, made once; a drive that is small; a bridge over a fake one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny_models import save_tiny

from .rig import Rig, Worker


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was measured of this machine's drives before says nothing here, and nothing is added to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_moe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-MoE in float32."""
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("checkpoints") / "qwen3_moe", torch.float32)


@pytest.fixture(scope="session")
def tiny_dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in float32."""
    return save_tiny("llama", tmp_path_factory.mktemp("checkpoints") / "llama", torch.float32)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store shared by tests that do not care what else is in it."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def small_drive(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "drive"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.flash.gate.set()
    assert Worker(rig.bridge.close).result() is None


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads change hands often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
