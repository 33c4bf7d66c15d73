"""Configurations that ask for absurd models are refused before anything large is built."""

import json
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from penstock.runtime.checkpoints.checkpoint import Checkpoint
from penstock.runtime.checkpoints.counted import counted
from penstock.runtime.checkpoints.files.bounds import Bounds
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.config.config import Config
from penstock.runtime.loading.opening import ModelSource
from penstock.runtime.packing.pack import pack
from penstock.runtime.planning.sketch import sketch_model
from penstock.tiering.errors import CheckpointError
from tests.support.tiny_models import save_tiny, tiny_config


def asking(folder: Path, name: str, changes: dict[str, Any]) -> Path:
    save_tiny(name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


ABSURD: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"num_hidden_layers": 20_000}),
    ("llama", {"num_hidden_layers": 900}),
    ("llama", {"num_hidden_layers": 10**9}),
    ("llama", {"vocab_size": 10**12}),
    ("llama", {"hidden_size": 10**9}),
    ("llama", {"num_labels": 10**9}),
    ("qwen3_moe", {"num_experts": 10**9}),
    ("qwen3_moe", {"num_local_experts": 10**9}),
    ("qwen3_moe", {"num_experts": 50_000, "num_local_experts": 50_000}),
    ("qwen3_moe", {"num_experts_per_tok": 1000}),
]


@pytest.mark.parametrize(("name", "changes"), ABSURD)
def test_what_no_file_justifies_is_refused_soon(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = asking(tmp_path / "model", name, changes)
    start = time.thread_time()
    with pytest.raises(CheckpointError):
        pack(folder, store=tmp_path / "store").close()
    with pytest.raises(CheckpointError):
        sketch_model(ModelSource(model=str(folder)), Config.load(None, store=tmp_path / "store"))
    assert time.thread_time() - start < 10


@pytest.mark.parametrize(
    ("name", "changes"),
    [("llama", {"num_hidden_layers": 20_000}), ("qwen3_moe", {"num_experts": 10**9, "num_local_experts": 10**9})],
)
def test_a_configuration_without_weights_is_bounded(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = asking(tmp_path / "model", name, changes)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be used"):
        sketch_model(ModelSource(model=str(folder)), Config.load(None, store=tmp_path / "store"))


@pytest.mark.parametrize(("count", "says"), [(400_000, "its header has"), (60_000, "60021 tensors")])
def test_tensors_of_nothing_are_refused(count: int, says: str, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    end = len(raw) - 8 - length
    header = json.loads(raw[8 : 8 + length])
    header |= {f"e{n}": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for n in range(count)}
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    with pytest.raises(CheckpointError, match=says):
        pack(folder, store=tmp_path / "store").close()


def test_modules_are_counted_in_the_thread_that_builds() -> None:
    bounds = Bounds("nothing is there", layers=1, parts=3, experts=1)
    with counted(bounds, "x"):
        other = threading.Thread(target=lambda: [nn.Linear(2, 2) for _ in range(10)])
        other.start()
        other.join()
        nn.Linear(2, 2)  # two weights
        with pytest.raises(CheckpointError, match="more than 3 modules and weights, and nothing is there"):
            nn.Linear(2, 2)
    for _ in range(10):
        nn.Linear(2, 2)


def test_an_honest_checkpoint_is_within_its_bounds(tmp_path: Path) -> None:
    for name in ("llama", "qwen3_moe"):
        checkpoint = Checkpoint.open(save_tiny(name, tmp_path / name))
        model = build_meta_model(checkpoint.config, torch.float32, bounds=checkpoint.bounds)
        assert model.config.num_hidden_layers == tiny_config(name).num_hidden_layers
