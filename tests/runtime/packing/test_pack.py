"""Packing: a bundle holds, bit for bit, what transformers loads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import penstock
from penstock.runtime.checkpoints import convert
from penstock.runtime.checkpoints.built_model import BuiltModel
from penstock.runtime.packing.arrange.formats import Rules
from penstock.runtime.packing.pack import pack
from penstock.tiering.errors import CheckpointError, ConfigError
from penstock.tiering.store.bundle.manifest import TENSOR_ALIGNMENT
from penstock.tiering.units import MiB
from tests.support.bundles import assert_equal, files_of, packed, tensors_of
from tests.support.tiny_models import EXPERT_NAMES, NAMES, save_tiny, tiny_config

# --- what is in it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_equals_what_transformers_loads(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint", dtype)
    with packed(source, tmp_path / "store") as bundle:
        assert bundle.manifest.dtype == str(dtype).removeprefix("torch.")
        assert_equal(bundle, source)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_shards_make_the_same_weights(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint", max_shard_size="60KB")
    assert len(list(source.glob("*.safetensors"))) > 3
    with packed(source, tmp_path / "store") as bundle:
        assert_equal(bundle, source)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")]
)
def test_weights_are_cast_as_transformers_does(name: str, stored: str, wanted: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint", getattr(torch, stored))
    dtype = getattr(torch, wanted)
    with packed(source, tmp_path / "store", dtype=dtype) as bundle:
        assert_equal(bundle, source, dtype=dtype)


@pytest.mark.parametrize("name", EXPERT_NAMES)
def test_experts_that_are_fused_already_are_sliced(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint")
    fused = AutoModelForCausalLM.from_pretrained(source).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in fused.items()}, source / "model.safetensors")
    with packed(source, tmp_path / "store") as bundle:
        assert_equal(bundle, source)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_converted_alone_or_together_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_tiny(name, tmp_path / "checkpoint")
    alone: list[int | None] = []
    real = convert.Group.convert

    def watch(self: convert.Group, model: object, load: object, expert: int | None = None) -> object:
        alone.append(expert if self.by_expert else None)
        return real(self, model, load, expert)  # type: ignore[arg-type]

    monkeypatch.setattr(convert.Group, "convert", watch)
    packed(source, tmp_path / "one").close()
    assert set(alone) == set(range(8))
    alone.clear()
    monkeypatch.setattr(convert, "_separable", lambda *_: False)
    packed(source, tmp_path / "all").close()
    assert alone == [None] * (2 * 2), "each of two stacked weights of two layers, once"
    assert [*files_of(tmp_path / "one").values()][1:] == [*files_of(tmp_path / "all").values()][1:]


def test_the_base_models_weights_fit_too(tmp_path: Path) -> None:
    source = save_tiny("qwen3", tmp_path / "checkpoint", tie_word_embeddings=True)
    bare = {k.removeprefix("model."): v for k, v in load_file(source / "model.safetensors").items()}
    save_file(bare | {"left.over": torch.ones(3)}, source / "model.safetensors")
    with packed(source, tmp_path / "store") as bundle:
        assert_equal(bundle, source)


def test_tied_weights_may_be_stored_under_either_name(tmp_path: Path) -> None:
    source = save_tiny("qwen2", tmp_path / "checkpoint", tie_word_embeddings=True)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, source / "model.safetensors")
    with packed(source, tmp_path / "store") as bundle:
        assert bundle.manifest.tied == {"lm_head.weight": "model.embed_tokens.weight"}
        assert_equal(bundle, source)
    save_file(weights | {"model.embed_tokens.weight": weights["lm_head.weight"].clone()}, source / "model.safetensors")
    with packed(source, tmp_path / "store") as bundle:
        assert bundle.manifest.tied
        assert_equal(bundle, source)


def test_weights_that_differ_are_not_tied(tmp_path: Path) -> None:
    source = save_tiny("qwen2", tmp_path / "checkpoint", tie_word_embeddings=True)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, source / "model.safetensors")
    with packed(source, tmp_path / "store") as bundle:
        assert bundle.manifest.tied == {}
        assert_equal(bundle, source)
        assert json.loads((bundle.model_folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_weight_that_may_be_absent_gets_its_initial_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    source = save_tiny("llama", tmp_path / "checkpoint")
    weights = load_file(source / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, source / "model.safetensors")
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_missing", [r"model\.norm"])
    with packed(source, tmp_path / "store") as bundle:
        assert torch.equal(tensors_of(bundle)["model.norm.weight"], torch.ones(64))
        assert_equal(bundle, source)


def test_the_model_folder_has_what_builds_the_model(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "checkpoint")
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("x")
    (source / "notes.txt").write_text("not ours")
    (source / "own.py").write_text("not ours")
    with packed(source, tmp_path / "store") as bundle:
        there = files_of(bundle.model_folder)
        assert there.keys() == {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
        assert all(data == (source / name).read_bytes() for name, data in there.items())


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3_moe", "gpt_oss"])
def test_a_model_in_memory_makes_a_bundle(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint", torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(source)
    with pack(BuiltModel.of(model), store=tmp_path / "store") as bundle:
        assert_equal(bundle, source)
        assert AutoModelForCausalLM.from_pretrained(source, config=bundle.model_folder).config == model.config
        with pack(BuiltModel.of(model), store=tmp_path / "store") as again:
            assert again.folder == bundle.folder
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pack(BuiltModel.of(model), store=tmp_path / "store") as other:
        assert other.folder != bundle.folder


def test_a_model_without_weights_makes_none(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    with pytest.raises(CheckpointError, match="meta device"):
        pack(BuiltModel.of(model), store=tmp_path / "store")


# --- checkpoints that do not fit their configuration -----------------------------------------------------------------


def test_missing_weights_are_named(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "checkpoint")
    weights = load_file(source / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if "layers.1" not in key}
    save_file(kept, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks .*layers\.1\..* and 4 more, which the model needs"):
        packed(source, tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.partial"))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_weights_of_another_size_are_named(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint")
    config = json.loads((source / "config.json").read_text())
    config |= {"intermediate_size": 128, "moe_intermediate_size": 48}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"mlp\..* has shape .* in the checkpoint, the model needs"):
        packed(source, tmp_path / "store")


def test_a_missing_expert_is_noticed(tmp_path: Path) -> None:
    source = save_tiny("qwen3_moe", tmp_path / "checkpoint")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.gate_up_proj"):
        packed(source, tmp_path / "store")


def test_an_unknown_weights_format_is_refused(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match="as-is"):
        penstock.load(source, store=tmp_path / "store", weights_format="int3")
    assert not (tmp_path / "store").exists()


def test_a_device_gets_a_bundle_of_aligned_weights(tmp_path: Path) -> None:
    """A checkpoint's tensors begin somewhere in a file; on a device transformers has them where its allocator says."""
    folder, store = save_tiny("llama", tmp_path / "model"), tmp_path / "store"
    bundles = [pack(folder, store=store, host_memory=32 * MiB, aligned=aligned) for aligned in (False, True)]
    offsets = [
        {spec.offset % TENSOR_ALIGNMENT for block in bundle.manifest.blocks for spec in block.tensors}
        for bundle in bundles
    ]
    assert offsets[0] != {0}
    assert offsets[1] == {0}
    assert bundles[0].folder != bundles[1].folder
    assert_equal(bundles[1], folder)
    for bundle in bundles:
        bundle.close()
    with pack(folder, store=store, host_memory=32 * MiB) as again:
        assert again.folder == bundles[0].folder


@pytest.mark.parametrize("format_", ["as-is", "lossless", "int4", "nested"])
def test_what_runs_ahead_changes_no_byte(format_: str, tmp_path: Path) -> None:
    """With 32 MiB nothing does."""
    source = save_tiny("qwen3_moe", tmp_path / "checkpoint", torch.bfloat16, hidden_size=128)
    rules, found = Rules(format_), []
    for memory in (32 * MiB, 256 * MiB):
        with packed(source, tmp_path / str(memory), rules=rules, host_memory=memory) as bundle:
            found.append(files_of(bundle.folder))
    assert found[0] == found[1]
