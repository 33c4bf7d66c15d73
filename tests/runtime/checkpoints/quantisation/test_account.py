"""Every tensor of a checkpoint is used, known to be useless, reported, or refused by name."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import penstock
from penstock.runtime.checkpoints.quantisation.account import Account, account_for, parts_by_weight
from penstock.tiering.errors import CheckpointError
from tests.support import more_quantised as more
from tests.support.bundles import assert_equal, packed
from tests.support.prompts import IDS
from tests.support.quantised_checkpoints import gptq, save_pair
from tests.support.tiny_models import save_tiny

SCALED = {"quant_method": "fp8", "activation_scheme": "dynamic"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}


def change(folder: Path, name: str, end: str, tensor: torch.Tensor | None = None) -> Path:
    """The checkpoint with one tensor of the weight ``name`` removed or replaced."""
    tensors = load_file(folder / "model.safetensors")
    own = f"{name}{end}"
    tensors.pop(own, None)
    save_file(tensors | ({} if tensor is None else {own: tensor}), folder / "model.safetensors")
    return folder


def configure(folder: Path, quantisation: object) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    path.write_text(json.dumps(config | ({} if quantisation is None else {"quantization_config": quantisation})))
    return folder


NAME = "model.layers.0.self_attn.q_proj"


def refused(folder: Path, says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        packed(folder, tmp_path / "store").close()
    assert "\n" not in str(caught.value)


# --- pure ------------------------------------------------------------------------------------------------------------


def test_parts_belong_to_weights() -> None:
    names = [
        "a.weight_scale", "b.qzeros", "c.weight.absmax", "d.weight.quant_state.bitsandbytes__nf4",
        "e.gate_up_proj_scale_inv", "f.input_scale", "g.bias", "h.weight", "i.g_idx", "k_proj.k_scale",
    ]  # fmt: skip
    found = parts_by_weight(names)
    for weight, part in [("a", 0), ("b", 1), ("c", 2), ("d", 3)]:
        assert found[f"{weight}.weight"] == [names[part]]
    assert found["e.gate_up_proj"] == [names[4]]
    assert {part for parts in found.values() for part in parts} == set(names[:5])


def test_each_name_has_one_verdict() -> None:
    names = ["a.weight", "a.weight_scale_2", "b.weight_scale", "c.rotary_emb.inv_freq", "a.k_scale", "d.mtp.x", "e"]
    assert account_for(names, {"a.weight"}, [r"mtp\."], quantised=True) == Account(
        ("b.weight_scale", "e"), ("a.weight_scale_2",)
    )
    assert account_for(names, {"a.weight"}, [], quantised=False) == Account(
        ("a.weight_scale_2", "b.weight_scale", "d.mtp.x", "e"), ()
    )


# --- what is not understood is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".weight_scale_inv", ".weight_scale", ".qscale_weight"])
def test_float8_without_its_scale(end: str, tmp_path: Path) -> None:
    folder = save_pair(tmp_path, "llama", SCALED, more.float8(end)).quantised
    refused(change(folder, NAME, end), rf"{NAME}\.weight is torch.float8_e4m3fn and has no scale", tmp_path)


def test_float8_with_a_scale_of_another_name(tmp_path: Path) -> None:
    folder = save_pair(tmp_path, "llama", SCALED, more.float8(".weight_scales")).quantised
    refused(folder, r"has no scale that penstock knows; beside it are model.*\.weight_scales", tmp_path)


def test_float8_with_two_scales(tmp_path: Path) -> None:
    folder = save_pair(tmp_path, "llama", SCALED, more.float8(".weight_scale")).quantised
    refused(change(folder, NAME, ".scale", torch.ones(1)), rf"{NAME}\.weight_scale, {NAME}\.scale", tmp_path)


def test_float8_with_scales_that_do_not_fit(tmp_path: Path) -> None:
    folder = save_pair(tmp_path, "llama", SCALED, more.float8(".weight_scale")).quantised
    refused(change(folder, NAME, ".weight_scale", torch.ones(7, 3)), r"\[7, 3\] scales .* do not fit", tmp_path)


def test_float8_with_one_more_factor(tmp_path: Path) -> None:
    folder = save_pair(tmp_path, "llama", SCALED, more.float8(".weight_scale")).quantised
    refused(change(folder, NAME, ".weight_scale_2", torch.ones(1)), rf"has {NAME}\.weight_scale_2", tmp_path)


def test_float8_that_the_configuration_does_not_mention(tmp_path: Path) -> None:
    folder = configure(save_pair(tmp_path, "llama", SCALED, more.float8(".weight_scale")).quantised, None)
    refused(folder, "no quantization_config, which would say what .*weight_scale means", tmp_path)


def test_float8_without_scales_is_what_it_is(tmp_path: Path) -> None:
    """A plain cast, as transformers does."""
    source = save_tiny("llama", tmp_path / "model", torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    cast = {n: t.to(torch.float8_e4m3fn) if n.endswith("_proj.weight") else t for n, t in tensors.items()}
    save_file(cast, source / "model.safetensors", {"format": "pt"})
    with packed(source, tmp_path / "store") as bundle:
        assert_equal(bundle, source, dtype=torch.bfloat16)


def test_packed_numbers_without_their_zeros(tmp_path: Path) -> None:
    weights = {"num_bits": 4, "symmetric": False}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config["config_groups"] = {"group_0": {"weights": weights}}
    folder = save_pair(tmp_path, "llama", config, more.compressed(4, 32)).quantised
    refused(folder, r"it lacks .*\.weight_zero_point", tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_integers_are_no_weight(dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "model")
    change(source, NAME, ".weight", torch.ones(64, 64, dtype=dtype))
    refused(source, rf"{NAME}\.weight is {dtype}, and the model needs numbers", tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"checkpoint_format": "marlin"}, "its layout is 'marlin'"),
        ({"group_size": 16}, r"groups of 16 numbers in rows of \d+ do not fit"),
        ({"bits": 8}, r"it has \d+ columns in 8 bits"),
        ({"bits": 3}, "it has 3 bits"),
    ],
)
def test_gptq_that_is_not_as_it_says(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    folder = save_pair(tmp_path, "llama", GPTQ | changes, gptq(32)).quantised
    refused(folder, says, tmp_path)


def test_gptq_with_groups_of_different_sizes(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, "llama", GPTQ, gptq(32), weights=r"layers\.0\.self_attn\.q_proj\.weight")
    index = torch.zeros(64, dtype=torch.int32)
    index[:7] = 1
    tensors = load_file(pair.quantised / "model.safetensors")
    plain = load_file(pair.plain / "model.safetensors")
    shifts = torch.arange(0, 32, 4)
    values = (tensors[f"{NAME}.qweight"][:, None] >> shifts[:, None] & 15).reshape(64, 64)
    zeros = ((tensors[f"{NAME}.qzeros"][:, :, None] >> shifts & 15) + 1 & 15).reshape(2, 64)
    meant = (values - zeros[index]).float() * tensors[f"{NAME}.scales"][index].float()
    save_file(plain | {f"{NAME}.weight": meant.t().contiguous().bfloat16()}, pair.plain / "model.safetensors")
    change(pair.quantised, NAME, ".g_idx", index)
    with packed(pair.quantised, tmp_path / "store") as bundle:
        assert_equal(bundle, pair.plain)


@pytest.mark.parametrize(
    ("quantisation", "says"),
    [
        *(({"quant_method": name}, f"quantised as '{name}', which penstock does not read") for name in
          ("aqlm", "eetq", "higgs", "hqq", "quanto", "spqr", "torchao", "vptq", "nvfp4", "auto-round", "bitnet")),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "in format marlin-24"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized",
          "sparsity_config": {"format": "sparse-24-bitmask"}}, "with sparsity sparse-24-bitmask"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv' of AWQ"),
    ],
)  # fmt: skip
def test_other_formats_are_named(quantisation: dict[str, object], says: str, tmp_path: Path) -> None:
    folder = save_pair(tmp_path, "llama", GPTQ, gptq(32)).quantised
    refused(configure(folder, quantisation), says, tmp_path)


def test_a_quantisation_in_a_part_of_the_configuration(tmp_path: Path) -> None:
    """transformers looks for it in the text part, too."""
    from penstock.runtime.checkpoints.checkpoint import Checkpoint
    from tests.support.tiny_models import tiny_config

    folder = tmp_path / "model"
    folder.mkdir()
    text = tiny_config("gemma3_text").to_dict() | {"quantization_config": {"quant_method": "hqq"}}
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    save_file({"x": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="quantised as 'hqq'"):
        Checkpoint.open(folder)


def test_a_method_that_transformers_ignores(tmp_path: Path) -> None:
    source = configure(save_tiny("llama", tmp_path / "model"), {"quant_method": "of-its-own"})
    with packed(source, tmp_path / "store") as bundle:
        assert_equal(bundle, source)


# --- what is left over is reported -----------------------------------------------------------------------------------


def test_tensors_that_no_weight_is_made_of(tmp_path: Path) -> None:
    source = change(save_tiny("llama", tmp_path / "model"), "mtp.fc", ".weight", torch.ones(2, 2))
    change(source, "model.layers.0.self_attn.rotary_emb", ".inv_freq", torch.ones(8))
    with pytest.warns(UserWarning, match=r"has tensors that a LlamaForCausalLM does not use: mtp\.fc\.weight$"):
        packed(source, tmp_path / "store").close()


def test_a_checkpoint_that_is_used_up_is_silent(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed(save_tiny("llama", tmp_path / "model"), tmp_path / "store").close()
        fp8 = save_pair(tmp_path, "qwen3_moe", SCALED, more.float8(".weight_scale", more={".k_scale": torch.ones(1)}))
        packed(fp8.quantised, tmp_path / "store").close()


def test_float8_of_stacked_experts(tmp_path: Path) -> None:
    """As transformers saves them: one tensor for all experts of a layer, and one for their scales."""
    torch.manual_seed(0)
    source = save_tiny("qwen3_moe", tmp_path / "model", torch.bfloat16)
    fused = {n: t.contiguous() for n, t in AutoModelForCausalLM.from_pretrained(source).state_dict().items()}
    plain, tensors = dict(fused), dict(fused)
    for name in [name for name in fused if "experts." in name]:
        values = torch.randn(fused[name].shape).to(torch.float8_e4m3fn)
        scales = torch.rand(len(values), values.shape[1], 1) + 0.1
        plain[name] = (values.float() * scales).bfloat16()
        tensors |= {name: values, f"{name}_scale_inv": scales}
    save_file(tensors, source / "model.safetensors")
    expected = save_tiny("qwen3_moe", tmp_path / "expected", torch.bfloat16)
    save_file(plain, expected / "model.safetensors", {"format": "pt"})
    with packed(configure(source, SCALED), tmp_path / "store") as bundle:
        assert_equal(bundle, expected)
        assert bundle.manifest.codec == "as-is"
        assert any(spec.packing for block in bundle.manifest.blocks for spec in block.tensors)


# --- what transformers makes of it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "quantise"),
    [
        (SCALED, more.float8(".qscale_weight")),
        (SCALED, more.float8(".scale", (1, 0))),
        (SCALED | {"weight_block_size": [32, 32]}, more.float8(".weight_scale_inv", (32, 32))),
        (SCALED, more.packed_e2m1),
        ({"quant_method": "mxfp8"}, more.float8(".weight_scale_inv", (1, 32), dtype=torch.uint8)),
    ],
    ids=["qscale_weight", "scale", "blocks", "four bits", "mxfp8"],
)
def test_transformers_itself_loads_the_same(config: dict[str, object], quantise: more.Quantise, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save_pair(tmp_path, "llama", config, quantise).quantised
    with packed(folder, tmp_path / "store") as bundle:
        assert_equal(bundle, folder, dtype=torch.bfloat16)


def test_a_matrix_that_a_module_holds_turned(tmp_path: Path) -> None:
    """The modules of GPT-2 hold their inputs as rows; quantised they are stored as those of others."""
    source = save_tiny("gpt2", tmp_path / "gpt2", torch.bfloat16)
    torch.manual_seed(0)
    tensors = load_file(source / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.0.attn.c_proj.weight"))
    parts, meant = gptq(32)(torch.Size((64, 64)))
    plain = tensors | {name: meant.t().contiguous().bfloat16()}
    expected = tmp_path / "expected"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(expected)
    save_file(plain, expected / "model.safetensors", {"format": "pt"})
    del tensors[name]
    parts = {name.removesuffix(".weight") + end: part for end, part in parts.items()}
    save_file(tensors | parts, source / "model.safetensors")
    configure(source, GPTQ)
    with packed(source, tmp_path / "store") as bundle:
        assert_equal(bundle, expected)


def test_a_tied_output_layer_that_is_quantised_alone_is_not_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = save_tiny("qwen2", tmp_path / "model", torch.bfloat16, tie_word_embeddings=True)
    tensors = load_file(source / "model.safetensors")
    parts, meant = more.float8(".weight_scale")(torch.Size((320, 64)))
    save_file(tensors | {f"lm_head{end}": part for end, part in parts.items()}, source / "model.safetensors")
    configure(source, SCALED)
    with penstock.load(source, store=tmp_path / "store") as model:
        states = model.model(torch.tensor([IDS])).last_hidden_state
        wanted = states @ meant.bfloat16().t()
        assert (model.lm_head(states) - wanted).norm() < 0.02 * wanted.norm()
        assert not model.config.tie_word_embeddings
