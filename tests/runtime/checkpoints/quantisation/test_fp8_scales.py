"""Scales of float8 weights that belong to another grid than the configuration says, or than their neighbours'."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.runtime.packing.pack import pack
from penstock.tiering.errors import CheckpointError
from tests.support.quantised_checkpoints import fp8, save_pair

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
SCALE = "model.layers.1.mlp.experts.1.down_proj.weight_scale_inv"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = {"moe_intermediate_size": 128, "hidden_size": 256}
    return save_pair(tmp_path, "qwen3_moe", FP8, fp8, **sizes).quantised


def change(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text())
    document["quantization_config"] |= entries
    path.write_text(json.dumps(document))


def test_scales_of_one_expert_turned_around(folder: Path, tmp_path: Path) -> None:
    """Any other grid was taken for blocks of another size: that expert had another format than the first."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    assert tensors[SCALE].shape == (2, 1)
    save_file(tensors | {SCALE: tensors[SCALE].t().contiguous()}, path)
    with pytest.raises(CheckpointError, match=r"scales.*down_proj\.weight_scale_inv do not fit"):
        pack(folder, store=tmp_path / "store").close()


@pytest.mark.parametrize("rows", [True, False])
def test_a_row_of_scales_or_one_is_no_grid(folder: Path, tmp_path: Path, rows: bool) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    scale = torch.ones(256, 1) if rows else torch.ones(1)
    save_file(tensors | {SCALE: scale}, path)
    pack(folder, store=tmp_path / "store").close()


@pytest.mark.parametrize("size", [1 << 62, 1 << 40])
def test_blocks_larger_than_any_matrix(folder: Path, tmp_path: Path, size: int) -> None:
    change(folder, weight_block_size=[size, 128])
    with pytest.raises(CheckpointError, match="do not fit"):
        pack(folder, store=tmp_path / "store").close()
