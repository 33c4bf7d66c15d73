"""A store that may only be read: what is in it is loaded, and what is not is refused with one clear sentence."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import penstock
from tests.support.logits import IDS


@pytest.fixture
def read_only(tmp_path: Path, tiny_dense_folder: Path) -> Iterator[tuple[Path, torch.Tensor]]:
    """A store on a read-only file system, with the bundle of a model, and the logits of that."""
    store = tmp_path / "store"
    store.mkdir()
    root = not os.geteuid()
    if root and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", store]).returncode:
        pytest.skip("no file system can be mounted here")
    with penstock.load(tiny_dense_folder, store=store, host_memory="8MiB") as model:
        expected = model(IDS).logits
    if root:
        subprocess.run(["mount", "-o", "remount,ro", store], check=True)
    else:
        store.chmod(0o500)
    yield store, expected
    if root:
        subprocess.run(["umount", store], check=True)
    else:
        store.chmod(0o700)


def test_a_bundle_in_it_is_loaded(read_only: tuple[Path, torch.Tensor], tiny_dense_folder: Path) -> None:
    store, expected = read_only
    with penstock.load(tiny_dense_folder, store=store, host_memory="8MiB") as model:
        assert torch.equal(model(IDS).logits, expected)


def test_also_if_the_digest_of_the_checkpoint_is_not_known_there(
    read_only: tuple[Path, torch.Tensor], tiny_dense_folder: Path
) -> None:
    store, expected = read_only
    os.utime(tiny_dense_folder / "model.safetensors")
    with penstock.load(tiny_dense_folder, store=store, host_memory="8MiB") as model:
        assert torch.equal(model(IDS).logits, expected)


def test_prompts_and_pages_cannot_be_kept_there(read_only: tuple[Path, torch.Tensor], tiny_dense_folder: Path) -> None:
    store, expected = read_only
    with penstock.load(tiny_dense_folder, store=store, host_memory="8MiB", kv_prefix="1MiB") as model:
        assert torch.equal(model(IDS).logits, expected)
        assert "is not writable" in model.penstock.stats().prefix.problem


def test_what_is_not_in_it_is_refused(read_only: tuple[Path, torch.Tensor], tiny_moe_folder: Path) -> None:
    store, _ = read_only
    with pytest.raises(penstock.ConfigError, match="is not writable, and what must be written there is not there yet"):
        penstock.load(tiny_moe_folder, store=store, host_memory="8MiB")
