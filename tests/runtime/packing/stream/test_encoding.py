"""Bundles with encoded matrices: which are encoded, where they lie, and that a model computes with them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import penstock
from penstock.kernels.formats.registry import ENCODING
from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.config.values import WEIGHT_FORMATS
from penstock.runtime.packing.arrange.formats import AS_IS, SHORT, Rules, choose_formats
from penstock.runtime.packing.stream import encoding
from penstock.tiering.errors import CheckpointError
from penstock.tiering.units import PAGE
from tests.support.encoded_models import decoded, logits, transformers_own
from tests.support.engines import engine_of
from tests.support.tiny_models import save_tiny, tiny_config


def test_settings_name_the_formats_that_there_are() -> None:
    ours = {name for name in WEIGHT_FORMATS if name not in (AS_IS, *SHORT)}
    assert ours == ENCODING.keys()
    assert set(SHORT.values()) <= ours


@pytest.mark.parametrize("name", ["int8", "int4-32"])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_a_model_computes_with_the_numbers_of_the_format(kind: str, name: str, tmp_path: Path) -> None:
    """Against transformers on the decoded matrices: products of few rows sum in another order, but that is all."""
    folder = save_tiny(kind, tmp_path / kind, torch.bfloat16)
    reference = decoded(transformers_own(folder), name)
    wanted, original = logits(reference), logits(transformers_own(folder))
    budget = 1 << 30
    for _ in range(2):  # with all in memory, and with as little as there can be
        with penstock.load(
            folder, store=tmp_path / "store", weights_format=name, host_memory=budget, attn_implementation="eager"
        ) as model:
            found = logits(model)
            budget = model.penstock.placement.minimum
            engine_of(model).check_integrity()
        assert (found - wanted).norm() < 0.02 * wanted.norm()
        assert (found - wanted).norm() < max(0.5 * (original - wanted).norm(), 0.01 * wanted.norm())
        assert not torch.equal(found, original)


def test_transposed_weights_are_encoded_by_output(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=320, n_embd=96, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path / "gpt2")
    plan = describe(model)
    chosen = choose_formats(model, plan, Rules("int8"))
    assert chosen["transformer.h.0.mlp.c_fc.weight"].transposed
    assert not chosen["transformer.wte.weight"].transposed
    wanted = logits(decoded(transformers_own(tmp_path / "gpt2"), "int8"))
    with penstock.load(
        tmp_path / "gpt2", store=tmp_path / "store", weights_format="int8", attn_implementation="eager"
    ) as streamed:
        assert (logits(streamed) - wanted).norm() < 0.02 * wanted.norm()


def test_rules_are_for_parts() -> None:
    model = build_meta_model(tiny_config("qwen3_moe"), torch.bfloat16)
    rules = Rules("int8", experts="int4", attention=AS_IS, output="int4-64")
    found = {name: choice.format for name, choice in choose_formats(model, describe(model), rules).items()}
    assert found["model.layers.0.mlp.experts.gate_up_proj"] == "int4-32"
    assert "model.layers.0.self_attn.q_proj.weight" not in found
    assert "model.embed_tokens.weight" not in found, "a token reads one row of it"
    assert found["lm_head.weight"] == "int4-64"
    assert not any("norm" in name or "gate.weight" in name for name in found)
    assert str(rules) == "int8,experts=int4-32,attention=as-is,output=int4-64"
    assert str(Rules("int4", experts="int4-32")) == str(Rules("int4-32"))


def test_encoded_blocks_lie_as_all_do(tmp_path: Path) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "moe", torch.bfloat16)
    with penstock.load(folder, store=tmp_path / "store", weights_format="int8") as model:
        manifest = engine_of(model).bundle.manifest
    with penstock.load(folder, store=tmp_path / "store") as model:
        plain = engine_of(model).bundle.manifest
    assert manifest.identity != plain.identity
    assert [block.id for block in manifest.blocks] == [block.id for block in plain.blocks]
    assert manifest.total_bytes < plain.total_bytes
    ends = [0] * len(manifest.files)
    for block in manifest.blocks:
        assert block.extent.offset == ends[block.extent.file]
        assert block.extent.offset % PAGE == 0
        ends[block.extent.file] = block.extent.end
        for spec in block.tensors:
            assert spec.packing is None or spec.offset % 64 == 0
    packed = {spec.name for block in manifest.blocks for spec in block.tensors if spec.packing}
    assert "model.layers.0.mlp.experts.gate_up_proj" in packed


def test_numbers_that_a_format_cannot_have_are_named(tmp_path: Path) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "moe", torch.bfloat16)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.experts.3.up_proj.weight"][2, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.gate_up_proj of expert 3 .*int8.*as-is"):
        penstock.load(folder, store=tmp_path / "store", weights_format="int8")
    with penstock.load(folder, store=tmp_path / "store") as model:
        assert model.penstock.stats().host_bytes > 0


def test_a_wrapped_model_is_encoded_too(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "llama", torch.bfloat16)
    with penstock.load(folder, store=tmp_path / "store", weights_format="int8", attn_implementation="eager") as model:
        wanted = logits(model)
    wrapped = penstock.wrap(transformers_own(folder), store=tmp_path / "store", weights_format="int8")
    assert torch.equal(logits(wrapped), wanted)
    wrapped.penstock.close()


def test_matrices_come_in_slabs_of_whole_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However small the pieces are that weights are read in, and the slabs: the bundle is the same."""
    folder = save_tiny("llama", tmp_path / "llama", torch.bfloat16)
    found = []
    for number, piece in enumerate((4 << 20, 4096)):
        monkeypatch.setattr(encoding, "_PIECE", piece)
        with penstock.load(folder, store=tmp_path / f"store-{number}", weights_format="int4") as model:
            bundle = engine_of(model).bundle
            found.append([block.checksum for block in bundle.manifest.blocks])
    assert found[0] == found[1]
