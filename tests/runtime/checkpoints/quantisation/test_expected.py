"""Tensors of quantised weights that are not as their configuration says: one error, which names file and tensor."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.runtime.checkpoints.checkpoint import Checkpoint
from penstock.runtime.packing.pack import pack
from penstock.tiering.errors import CheckpointError
from tests.support.more_quantised import compressed, four_bits, int8_rows
from tests.support.quantised_checkpoints import awq, fp8, gptq, mxfp4, save_pair

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4"}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True}}},
}
LAYER = "model.layers.0.self_attn.k_proj"
EXPERTS = "model.layers.0.mlp.experts.down_proj"

Change = Callable[[torch.Tensor], torch.Tensor]


def first(value: float) -> Change:
    """The first number is ``value``."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        made = tensor.clone()
        made.view(-1)[0] = value
        return made

    return change


def flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1)


def turned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.t().contiguous()


def reshaped(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes as they are, in the shape of the transpose."""
    return tensor.reshape(tensor.shape[::-1]).contiguous()


def single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1)[0].clone()


def bits_as(dtype: torch.dtype) -> Change:
    return lambda tensor: tensor.view(dtype)


def state(**changes: Any) -> Change:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        made = json.loads(bytes(tensor.tolist())) | changes
        return torch.tensor(list(json.dumps(made).encode()), dtype=torch.uint8)

    return change


def saved(folder: Path, config: dict[str, Any]) -> Path:
    method = config["quant_method"]
    if method == "mxfp4":
        made = save_pair(folder, "gpt_oss", config, mxfp4, weights=r"experts\.(gate_up|down)_proj$")
        return made.quantised
    ways = {"gptq": gptq(32), "awq": awq(32), "fp8": fp8, "compressed-tensors": compressed(4, 32)}
    way = int8_rows if config is BNB8 else four_bits(nested=True) if config is BNB4 else ways[method]
    return save_pair(folder, "llama", config, way).quantised


CASES: list[tuple[dict[str, Any], str, Change]] = [
    (GPTQ, f"{LAYER}.g_idx", first(2**31 - 1)),
    (GPTQ, f"{LAYER}.g_idx", first(-1)),
    (GPTQ, f"{LAYER}.g_idx", bits_as(torch.float32)),
    (GPTQ, f"{LAYER}.qzeros", flat),
    (GPTQ, f"{LAYER}.qzeros", reshaped),
    (GPTQ, f"{LAYER}.qzeros", bits_as(torch.float32)),
    (GPTQ, f"{LAYER}.qweight", flat),
    (GPTQ, f"{LAYER}.scales", single),
    (GPTQ, f"{LAYER}.scales", turned),
    (GPTQ, f"{LAYER}.scales", first(float("nan"))),
    (GPTQ, f"{LAYER}.scales", first(float("inf"))),
    (AWQ, f"{LAYER}.scales", reshaped),
    (AWQ, f"{LAYER}.scales", turned),
    (AWQ, f"{LAYER}.scales", single),
    (AWQ, f"{LAYER}.qzeros", reshaped),
    (AWQ, f"{LAYER}.qzeros", single),
    (AWQ, f"{LAYER}.qweight", flat),
    (AWQ, f"{LAYER}.scales", first(float("nan"))),
    (FP8, f"{LAYER}.weight_scale_inv", first(float("nan"))),
    (FP8, f"{LAYER}.weight_scale_inv", bits_as(torch.int32)),
    (FP8, f"{LAYER}.weight", flat),
    (FP8, f"{LAYER}.weight", first(float("nan"))),
    (MXFP4, f"{EXPERTS}_scales", first(255)),
    (MXFP4, f"{EXPERTS}_scales", bits_as(torch.int8)),
    (MXFP4, f"{EXPERTS}_scales", flat),
    (MXFP4, f"{EXPERTS}_blocks", flat),
    (BNB4, f"{LAYER}.weight.absmax", lambda tensor: tensor[:-1].clone()),
    (BNB4, f"{LAYER}.weight.quant_map", first(float("nan"))),
    (BNB4, f"{LAYER}.weight.quant_map", bits_as(torch.int32)),
    (BNB4, f"{LAYER}.weight.nested_absmax", lambda tensor: torch.cat([tensor, tensor])),
    (BNB4, f"{LAYER}.weight.nested_quant_map", lambda tensor: tensor[:3].clone()),
    (BNB4, f"{LAYER}.weight.quant_state.bitsandbytes__nf4", state(blocksize=0)),
    (BNB4, f"{LAYER}.weight.quant_state.bitsandbytes__nf4", state(nested_blocksize=10**12)),
    (BNB4, f"{LAYER}.weight.quant_state.bitsandbytes__nf4", state(shape=[-32, -64])),
    (BNB4, f"{LAYER}.weight.quant_state.bitsandbytes__nf4", state(shape="x")),
    (BNB4, f"{LAYER}.weight.quant_state.bitsandbytes__nf4", state(dtype="load")),
    (BNB4, f"{LAYER}.weight.quant_state.bitsandbytes__nf4", state(nested_offset="nan")),
    (BNB4, f"{LAYER}.weight.quant_state.bitsandbytes__nf4", lambda tensor: torch.full((100_000,), 91).byte()),
    (BNB8, f"{LAYER}.SCB", single),
    (BNB8, f"{LAYER}.SCB", first(float("inf"))),
    (BNB8, f"{LAYER}.weight", flat),
    (PACKED, f"{LAYER}.weight_shape", first(2**40)),
    (PACKED, f"{LAYER}.weight_shape", single),
    (PACKED, f"{LAYER}.weight_scale", turned),
    (PACKED, f"{LAYER}.weight_scale", lambda tensor: tensor[:, :1].clone()),
    (PACKED, f"{LAYER}.weight_scale", first(float("nan"))),
    (PACKED, f"{LAYER}.weight_packed", flat),
]


@pytest.mark.parametrize(("config", "name", "change"), CASES)
def test_a_part_that_is_not_as_it_must_be(config: dict[str, Any], name: str, change: Change, tmp_path: Path) -> None:
    folder = saved(tmp_path, config)
    pack(folder, store=tmp_path / "honest").close()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    made = change(tensors[name])
    save_file(tensors | {name: made}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        pack(folder, store=tmp_path / "store").close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"
    said = str(caught.value)
    assert name.rpartition(".")[0].removesuffix("_blocks").removesuffix("_scales").split(".quant_state")[0] in said
    assert str(path) in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (GPTQ, {"bits": None}),
        (GPTQ, {"bits": "x"}),
        (GPTQ, {"bits": [4]}),
        (GPTQ, {"bits": 0}),
        (GPTQ, {"bits": 3}),
        (GPTQ, {"bits": float("inf")}),
        (GPTQ, {"group_size": -7}),
        (GPTQ, {"group_size": 64}),
        (GPTQ, {"group_size": 10**30}),
        (GPTQ, {"group_size": None}),
        (AWQ, {"group_size": 16}),
        (AWQ, {"bits": {}}),
        (FP8, {"weight_block_size": [0, 0]}),
        (FP8, {"weight_block_size": "128"}),
        (FP8, {"weight_block_size": [128]}),
        (PACKED, {"config_groups": [5]}),
        (PACKED, {"config_groups": {"a": 5}}),
        (PACKED, {"config_groups": {"a": {"weights": {"num_bits": "x"}}}}),
        (PACKED, {"config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 16, "strategy": "group"}}}}),
    ],
)
def test_a_configuration_that_does_not_fit(config: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(tmp_path, config)
    path = folder / "config.json"
    document = json.loads(path.read_text())
    document["quantization_config"] |= changes
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [[], "gptq", 5, {"quant_method": []}, {"quant_method": "gptq"}, {"load_in_4bit": 1}])
def test_a_quantization_config_of_another_kind(value: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path, GPTQ)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": value}))
    with pytest.raises(CheckpointError):
        pack(folder, store=tmp_path / "store").close()
