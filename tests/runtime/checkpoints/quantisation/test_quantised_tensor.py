"""Checkpoints that come quantised: each weight is what transformers makes of the same numbers, as pieces and planes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from penstock.kernels.formats.registry import FORMATS
from penstock.runtime.checkpoints.checkpoint import Checkpoint
from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.checkpoints.quantised_weights import QuantisedWeights
from penstock.runtime.checkpoints.weights import SourceFormat
from penstock.tiering.errors import CheckpointError
from penstock.tiering.units import MiB
from tests.support import more_quantised as more
from tests.support.bundles import assert_equal, joined, packed
from tests.support.engines import engine_of
from tests.support.quantised_checkpoints import Pair, awq, fp8, gptq, mxfp4, save_pair

MEMORY = 64 * MiB
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(1))
QKV = r"layers\..*[qkv]_proj\.weight"


SCALED = {"quant_method": "fp8", "activation_scheme": "dynamic"}
FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def compressed(format_: str) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": format_, "config_groups": {}}


class Case(NamedTuple):
    """``others`` are the formats of weights that are not of experts."""

    save: Callable[[Path], Pair]
    experts: set[SourceFormat]
    others: set[SourceFormat]


MXFP4, BLOCKS, LINES = SourceFormat("mxfp4", transposed=True), SourceFormat("fp8-128x128"), SourceFormat("fp8-1x128")
MICRO = SourceFormat("fp8-1x32")
GROUPS, ORDERED, ROWS = SourceFormat("uint4-32"), SourceFormat("uint4-32-ordered"), SourceFormat("uint4-row")


def dense(config: dict[str, Any], quantise: more.Quantise, *formats: SourceFormat) -> Case:
    return Case(lambda folder: save_pair(folder, "llama", config, quantise), set(), set(formats))


CASES = {
    "mxfp4": Case(
        lambda folder: save_pair(folder, "gpt_oss", {"quant_method": "mxfp4"}, mxfp4, weights=r"experts\.\w+_proj$"),
        {MXFP4},
        set(),
    ),
    "fp8": Case(
        lambda folder: save_pair(folder, "qwen3_moe", FP8, fp8, moe_intermediate_size=128, hidden_size=256),
        {BLOCKS},
        {BLOCKS},
    ),
    "fp8, experts that end within blocks": Case(
        lambda folder: save_pair(folder, "qwen3_moe", FP8, fp8, weights=r"experts.*proj\.weight"),
        {BLOCKS, LINES},
        set(),
    ),
    "gptq": Case(lambda folder: save_pair(folder, "llama", GPTQ, gptq(32)), set(), {GROUPS}),
    "gptq, whole rows": Case(
        lambda folder: save_pair(folder, "llama", GPTQ | {"group_size": -1}, gptq(64), weights=QKV), set(), {ROWS}
    ),
    "gptq, in order of activations": Case(
        lambda folder: save_pair(folder, "llama", GPTQ | {"desc_act": True}, gptq(32, order=ORDER), weights=QKV),
        set(),
        {ORDERED},
    ),
    "gptq, experts in order of activations": Case(
        lambda folder: save_pair(
            folder, "qwen3_moe", GPTQ | {"desc_act": True}, gptq(32, order=ORDER), weights=r"experts.*(gate|up)_proj"
        ),
        {ORDERED},
        set(),
    ),
    "gptq, second version": Case(
        lambda folder: save_pair(folder, "llama", GPTQ | {"checkpoint_format": "gptq_v2"}, gptq(32, version=2)),
        set(),
        {GROUPS},
    ),
    "gptq, experts": Case(lambda folder: save_pair(folder, "qwen3_moe", GPTQ, gptq(32)), {GROUPS}, {GROUPS}),
    "awq": Case(lambda folder: save_pair(folder, "llama", AWQ, awq(32)), set(), {GROUPS}),
    "awq, experts": Case(lambda folder: save_pair(folder, "qwen3_moe", AWQ, awq(32)), {GROUPS}, {GROUPS}),
    "gptq, in an order that the configuration does not mention": Case(
        lambda folder: save_pair(folder, "llama", GPTQ, gptq(32, order=ORDER), weights=QKV), set(), {ORDERED}
    ),
    "gptq, 8 bits": dense(GPTQ | {"bits": 8}, more.gptq8),
    "fp8, qscale_weight": dense(SCALED, more.float8(".qscale_weight", more={".qscale_act": torch.ones(())}), BLOCKS),
    "fp8, scale": dense(SCALED, more.float8(".scale", shape=torch.flatten), BLOCKS),
    "fp8, weight_scale": dense(SCALED, more.float8(".weight_scale", shape=torch.squeeze), BLOCKS),
    "fp8, weight_scale in bfloat16": dense(SCALED, more.float8(".weight_scale", dtype=torch.bfloat16), BLOCKS),
    "fp8, static": dense(SCALED, more.float8(".weight_scale", more={".input_scale": torch.ones(())}), BLOCKS),
    "fp8, weight_scale of rows": dense(SCALED, more.float8(".weight_scale", (1, 0)), LINES),
    "fp8, weight_scale_inv of rows": dense(SCALED, more.float8(".weight_scale_inv", (1, 0)), LINES),
    "fp8, a list of scales": dense(SCALED, more.float8(".weight_scale", (1, 0), shape=torch.flatten), LINES),
    "fp8, small blocks": dense(
        SCALED | {"weight_block_size": [32, 32]}, more.float8(".scale", (32, 32), dtype=torch.float8_e8m0fnu), MICRO
    ),
    "fp8, tiny blocks": dense(SCALED | {"weight_block_size": [16, 16]}, more.float8(".weight_scale_inv", (16, 16))),
    "fp8, blocks that nothing mentions": dense(SCALED, more.float8(".weight_scale_inv", (32, 32)), MICRO),
    "fp8, e5m2": dense(SCALED, more.float8(".weight_scale_inv", numbers=torch.float8_e5m2)),
    "fp8, four bits": dense(SCALED, more.packed_e2m1),
    "mxfp8": dense({"quant_method": "mxfp8"}, more.float8(".weight_scale_inv", (1, 32), dtype=torch.uint8), MICRO),
    "fbgemm": dense({"quant_method": "fbgemm_fp8"}, more.float8(".weight_scale", (1, 0)), LINES),
    "fp8, experts with one scale each": Case(
        lambda folder: save_pair(folder, "qwen3_moe", SCALED, more.float8(".weight_scale")), {BLOCKS, LINES}, {BLOCKS}
    ),
    "fp8, experts with scales of rows": Case(
        lambda folder: save_pair(
            folder, "qwen3_moe", SCALED, more.float8(".weight_scale", (1, 0)), weights=r"experts.*proj\.weight"
        ),
        {LINES},
        set(),
    ),
    "compressed-tensors, float8": dense(compressed("float-quantized"), more.float8(".weight_scale", (1, 0)), LINES),
    "compressed-tensors, int8": dense(compressed("int-quantized"), more.int8()),
    "compressed-tensors, int8 with zeros": dense(compressed("naive-quantized"), more.int8(zeros=True)),
    "compressed-tensors, packed": dense(compressed("pack-quantized"), more.compressed(4, 32), GROUPS),
    "compressed-tensors, packed with zeros": dense(
        compressed("pack-quantized"), more.compressed(4, 32, zeros=True), GROUPS
    ),
    "compressed-tensors, packed in bfloat16": dense(
        compressed("pack-quantized"), more.compressed(4, 32, zeros=True, dtype=torch.bfloat16)
    ),
    "compressed-tensors, packed in an order": dense(
        compressed("pack-quantized"), more.compressed(4, 32, order=True, dtype=torch.bfloat16)
    ),
    "compressed-tensors, packed, 8 bits": dense(
        compressed("pack-quantized"), more.compressed(8, None, dtype=torch.bfloat16)
    ),
    "compressed-tensors, nvfp4": dense(
        compressed("nvfp4-pack-quantized"), more.nvfp4(".weight_packed", ".weight_global_scale", divided=True)
    ),
    "modelopt, fp8": dense({"quant_method": "modelopt"}, more.float8(".weight_scale"), BLOCKS),
    "modelopt, nvfp4": dense({"quant_method": "modelopt"}, more.nvfp4(".weight", ".weight_scale_2", divided=False)),
    "bitsandbytes, nf4": dense(FOUR_BITS, more.four_bits(nested=False)),
    "bitsandbytes, nf4 twice": dense(FOUR_BITS, more.four_bits(nested=True)),
    "bitsandbytes, nf4, experts": Case(
        lambda folder: save_pair(folder, "qwen3_moe", FOUR_BITS, more.four_bits(nested=True)), set(), set()
    ),
    "bitsandbytes, int8": dense({"quant_method": "bitsandbytes", "load_in_8bit": True}, more.int8_rows),
}


@pytest.fixture(autouse=True)
def _chance() -> None:
    torch.manual_seed(0)


def weights_of(folder: Path) -> tuple[QuantisedWeights, Any]:
    checkpoint = Checkpoint.open(folder)
    model = build_meta_model(checkpoint.config, checkpoint.dtype())
    plan = describe(model)
    return QuantisedWeights(model, checkpoint.tensors, plan, memory=MEMORY), plan


def decoded(plane: torch.Tensor, stored: SourceFormat, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    n, k = reversed(shape) if stored.transposed else shape
    assert (len(plane),) == FORMATS[stored.format].lengths(n, k)
    out = torch.empty(n, k, dtype=dtype)
    FORMATS[stored.format].decode([plane], n, k, slice(0, n), out)
    return out.t() if stored.transposed else out


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_that_transformers_loads(name: str, tmp_path: Path):
    case = CASES[name]
    pair = case.save(tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(pair.plain, dtype="auto").state_dict()
    weights, plan = weights_of(pair.quantised)
    stored = weights.stored()
    found: dict[str, SourceFormat] = {}
    for block in plan.blocks:
        expert = block.id.part if block.id.kind == "expert" else None
        for spec in block.tensors:
            wanted = expected[spec.name] if expert is None else expected[spec.name][expert]
            raw = b"".join(bytes(piece) for piece in weights.pieces(spec, expert))
            made = torch.frombuffer(bytearray(raw), dtype=wanted.dtype).view(wanted.shape)
            assert torch.equal(made, wanted), spec.name
            if spec.name in stored:
                found[spec.name] = stored[spec.name]
                plane = joined(weights.plane(spec.name, expert))
                assert torch.equal(decoded(plane, stored[spec.name], spec.shape, wanted.dtype), wanted), spec.name
    weights.close()
    assert found == stored
    assert {found[name] for name in found if "experts" in name} == case.experts
    assert {found[name] for name in found if "experts" not in name} == case.others


def test_experts_of_different_orders_are_stored_as_numbers(tmp_path: Path):
    made = 0

    def quantise(shape: torch.Size) -> Any:
        nonlocal made
        made += 1
        return gptq(32, order=ORDER.flip(0) if made == 7 else ORDER)(shape)

    config = GPTQ | {"desc_act": True}
    pair = save_pair(tmp_path, "qwen3_moe", config, quantise, weights=r"experts\.\d+\.(gate|up)_proj\.weight")
    assert made == 2 * 2 * 8
    expected = AutoModelForCausalLM.from_pretrained(pair.plain, dtype="auto").state_dict()
    weights, plan = weights_of(pair.quantised)
    assert len(weights.stored()) == 1, "of two layers, one has an expert whose matrices cannot be stacked"
    block = next(block for block in plan.blocks if block.id.kind == "expert" and block.id.part == 3)
    (spec,) = (spec for spec in block.tensors if spec.name.endswith("gate_up_proj"))
    raw = b"".join(bytes(piece) for piece in weights.pieces(spec, 3))
    wanted = expected[spec.name][3]
    assert torch.equal(torch.frombuffer(bytearray(raw), dtype=wanted.dtype).view(wanted.shape), wanted)


@pytest.mark.parametrize("name", ["mxfp4", "gptq, experts"])
def test_a_bundle_holds_the_numbers_that_are_meant(name: str, tmp_path: Path):
    pair = CASES[name].save(tmp_path)
    with packed(pair.quantised, tmp_path / "store") as bundle:
        assert_equal(bundle, pair.plain)
        described = json.loads((bundle.folder / "model" / "config.json").read_text())
    assert "quantization_config" not in described


@pytest.mark.parametrize("name", CASES)
def test_a_model_computes_with_what_its_source_stored(name: str, tmp_path: Path):
    """Products of few rows sum in another order than torch's, but that is all."""
    pair = CASES[name].save(tmp_path)
    ids = torch.randint(3, 300, (1, 9))
    plain = AutoModelForCausalLM.from_pretrained(pair.plain, dtype="auto", experts_implementation="eager").eval()
    with torch.no_grad():
        wanted = plain(ids).logits.float()
    with penstock.load(pair.quantised, store=tmp_path / "store") as model:
        found = model(ids).logits.float()
        formats = {s.packing.format for b in engine_of(model).bundle.manifest.blocks for s in b.tensors if s.packing}
    assert formats == {stored.format for stored in CASES[name].experts | CASES[name].others}
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_a_quantised_source_can_be_stored_in_another_format(tmp_path: Path):
    pair = CASES["awq"].save(tmp_path)
    with penstock.load(pair.quantised, store=tmp_path / "store", weights_format="int8") as model:
        specs = [spec for b in engine_of(model).bundle.manifest.blocks for spec in b.tensors]
        assert {spec.packing.format for spec in specs if spec.packing} == {"int8"}


def test_a_quantised_matrix_has_no_place_in_the_file_to_keep(tmp_path: Path):
    weights, _ = weights_of(CASES["awq"].save(tmp_path).quantised)
    assert not weights.addresses().keys() & weights.stored().keys()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quant_method": "compressed-tensors"}, "compressed-tensors.*does not read"),
        ({"bits": 8}, "8 bits"),
        ({"group_size": 48}, "groups of 48"),
        ({"quant_method": "awq", "version": "gemv"}, "gemv"),
    ],
)
def test_other_ways_to_quantise_are_refused(changes: dict[str, Any], says: str, tmp_path: Path):
    folder = save_pair(tmp_path, "llama", GPTQ, gptq(32)).quantised
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=says):
        Checkpoint.open(folder)


def test_a_weight_without_its_scales_is_refused(tmp_path: Path):
    def without_scales(shape: torch.Size) -> Any:
        parts, numbers = gptq(32)(shape)
        return {end: part for end, part in parts.items() if end != ".scales"}, numbers

    folder = save_pair(tmp_path, "llama", GPTQ, without_scales).quantised
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.0\..*_proj\.scales"):
        Checkpoint.open(folder)
