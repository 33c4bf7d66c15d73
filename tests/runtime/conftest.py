"""What several tests share: checkpoints, made once; a drive that is small; a bridge over a fake one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from penstock.kernels.machine.read_rates import ReadRate
from penstock.runtime.cli.main import main
from penstock.tiering.units import KiB, MiB
from tests.support.rig import Rig, Worker
from tests.support.timings import NOW, measured
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was measured of this machine's drives before says nothing here, and nothing is added to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
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
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and a folder of the test's own; one thread, since tiny products on a busy machine only wait for others."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process; exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def ask(run: Callable[..., tuple[int, str, str]]) -> Callable[..., dict[str, Any]]:
    """Run with ``--json``; the object."""

    def ask(*arguments: object) -> dict[str, Any]:
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, "")
        found: dict[str, Any] = json.loads(out)
        return found

    return ask


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-MoE of 648 KiB, with a tokenizer of which every word is one token."""
    folder = save_tiny("qwen3_moe", tmp_path_factory.mktemp("cli") / "moe", torch.float32)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, 320)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="w3"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that take no time."""
    monkeypatch.setattr("penstock.runtime.machine.drives.drive_speed", lambda *_, **__: 1e9)
    rates = [ReadRate(size, depth, 1e9) for size in (128 * KiB, MiB) for depth in (1, 2, 4)]
    monkeypatch.setattr("penstock.runtime.machine.drives.drive_rates", lambda *_, **__: measured(rates))
    monkeypatch.setattr("penstock.runtime.planning.reference.timings_here", lambda *_, **__: NOW)


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
