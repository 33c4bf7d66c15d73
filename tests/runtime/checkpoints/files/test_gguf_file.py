"""GGUF files: each weight means what transformers makes of the same file, as pieces and planes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import penstock
from penstock.kernels.formats.registry import FORMATS
from penstock.runtime.checkpoints import gguf_weights
from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.checkpoints.files.gguf_file import GgufFile
from penstock.runtime.checkpoints.files.gguf_header import is_gguf
from penstock.runtime.checkpoints.gguf_source import GgufSource
from penstock.runtime.checkpoints.gguf_weights import GgufWeights
from penstock.runtime.checkpoints.layout import Layout
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.tiering.errors import CheckpointError
from tests.support.bundles import joined
from tests.support.engines import engine_of
from tests.support.gguf_blocks import GGUF_NAMES
from tests.support.gguf_files import EXPERTS, HIDDEN, mixed, write

DTYPE = torch.bfloat16


def opened(path: Path) -> tuple[GgufFile, GgufWeights, Layout, dict[str, torch.Tensor]]:
    """The file, its weights, and what transformers makes of them."""
    file = GgufFile.open(path)
    model = build_meta_model(file.config, DTYPE)
    plan = describe(model)
    loaded = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model, torch_dtype=DTYPE)["tensors"]
    return file, GgufWeights(model, file, plan), plan, loaded


def check(path: Path) -> dict[str, str]:
    """Compare all weights of a file; the formats of those that can be stored in its own blocks."""
    _, weights, plan, loaded = opened(path)
    stored = weights.stored()
    seen = set()
    for block in plan.blocks:
        expert = block.id.part if block.id.kind == "expert" else None
        for spec in block.tensors:
            # transformers leaves experts in float32 there.
            wanted = (loaded[spec.name] if expert is None else loaded[spec.name][expert]).to(DTYPE)
            raw = b"".join(bytes(piece) for piece in weights.pieces(spec, expert))
            assert torch.equal(torch.frombuffer(bytearray(raw), dtype=DTYPE).view(spec.shape), wanted), spec.name
            if spec.name in stored:
                seen.add(spec.name)
                format_ = FORMATS[stored[spec.name].format]
                plane, out = joined(weights.plane(spec.name, expert)), torch.empty(spec.shape, dtype=DTYPE)
                n, k = spec.shape
                assert (len(plane),) == format_.lengths(n, k)
                format_.decode([plane], n, k, slice(0, n), out)
                assert torch.equal(out, wanted), spec.name
    weights.close()
    assert seen == stored.keys()
    return {name: found.format for name, found in stored.items()}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3moe"])
def test_weights_are_those_that_transformers_loads(architecture: str, tmp_path: Path):
    stored = check(write(tmp_path / "model.gguf", architecture, mixed))
    layer = {name.removeprefix("model.layers.1."): kind for name, kind in stored.items() if "layers.1." in name}
    attention = {"q_proj": "q8_0", "k_proj": "q4_0", "v_proj": "q6_k", "o_proj": "q4_k"}
    wanted = {f"self_attn.{name}.weight": kind for name, kind in attention.items()}
    if architecture == "qwen3moe":
        wanted |= {"mlp.experts.gate_up_proj": "q4_k", "mlp.experts.down_proj": "q6_k"}
    else:
        wanted |= {"mlp.gate_proj.weight": "q4_k", "mlp.up_proj.weight": "q4_k", "mlp.down_proj.weight": "q6_k"}
    assert layer == wanted
    assert "model.embed_tokens.weight" not in stored


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe"])
def test_a_file_is_packed_and_computed_with(architecture: str, tmp_path: Path):
    path = write(tmp_path / "model.gguf", architecture, lambda name: "F32" if "norm" in name else "Q8_0")
    file, weights, _, loaded = opened(path)
    weights.close()
    own = AutoModelForCausalLM.from_config(file.config, dtype=DTYPE, experts_implementation="eager").eval()
    own.load_state_dict(loaded, strict=False)
    ids = torch.randint(3, 60, (1, 9))
    with torch.no_grad():
        wanted = own(ids).logits.float()
    budget = 1 << 30
    for _ in range(2):  # with all in memory, and with little of it
        with penstock.load(path, store=tmp_path / "store", dtype=DTYPE, host_memory=budget) as model:
            found = model(ids).logits.float()
            budget = 2 * model.penstock.placement.minimum
            specs = [spec for block in engine_of(model).bundle.manifest.blocks for spec in block.tensors]
        assert {spec.packing.format for spec in specs if spec.packing} == {"q8_0"}, "the file's own blocks"
        assert (found - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("kind", GGUF_NAMES)
def test_every_format_is_kept(kind: str, tmp_path: Path):
    assert set(check(write(tmp_path / "model.gguf", "llama", lambda name: kind)).values()) == {kind}


@pytest.mark.parametrize("kind", ["q2_k", "mxfp4"])
def test_types_without_a_format_are_stored_as_numbers(kind: str, tmp_path: Path):
    path = write(tmp_path / "model.gguf", "llama", lambda name: kind if "ffn" in name else "q8_0")
    assert set(check(path).values()) == {"q8_0"}


def test_gates_of_another_type_than_the_rest_are_stored_as_numbers(tmp_path: Path):
    stored = check(write(tmp_path / "model.gguf", "qwen3moe", lambda name: "q8_0" if "gate" in name else "q4_0"))
    assert {name.rpartition(".")[2] for name in stored if "experts" in name} == {"down_proj"}


@pytest.mark.parametrize("rows", [5, HIDDEN], ids=["some at a time", "whole"])
def test_rows_of_heads_that_llama_cpp_has_in_another_order_come_back(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gguf_weights, "CHUNK", 4 * HIDDEN * rows)
    path = write(tmp_path / "model.gguf", "llama", lambda name: "q8_0")
    file, weights, _, _ = opened(path)
    order = file.row_order(file.tensors["blk.0.attn_q.weight"])
    assert order is not None
    assert order[:4].tolist() == [0, 2, 4, 6], "the halves of a head lie between each other in the file"
    raw = file.tensors["blk.0.attn_q.weight"]
    whole = np.fromfile(path, np.uint8, raw.length, offset=raw.offset).reshape(HIDDEN, -1)
    pieces = list(weights.plane("model.layers.0.self_attn.q_proj.weight", None))
    assert len(pieces) == -(-HIDDEN // rows)
    plane = joined(pieces)
    assert np.array_equal(plane.numpy().reshape(HIDDEN, -1), whole[order.numpy()])


def test_the_model_folder_has_the_configuration(tmp_path: Path):
    file = GgufFile.open(write(tmp_path / "model.gguf", "qwen3moe", mixed))
    (tmp_path / "folder").mkdir()
    GgufSource.open(file.path).write_model_files(tmp_path / "folder", untied=False)
    config = AutoConfig.from_pretrained(tmp_path / "folder")
    assert (config.model_type, config.num_experts, config.hidden_size) == ("qwen3_moe", EXPERTS, HIDDEN)
    assert file.dtype() == torch.bfloat16


def test_a_file_of_plain_numbers_is_computed_in_their_dtype(tmp_path: Path):
    assert GgufFile.open(write(tmp_path / "model.gguf", "llama", lambda name: "f16")).dtype() == torch.float16


def test_what_is_a_gguf_file(tmp_path: Path):
    (tmp_path / "other").write_bytes(b"GGML")
    assert is_gguf(write(tmp_path / "model.gguf", "llama", mixed))
    assert not is_gguf(tmp_path / "other")
    assert not is_gguf(tmp_path / "none")
    assert not is_gguf(tmp_path)


@pytest.mark.parametrize("left", [0, 10, 300, -1000])
def test_a_truncated_file_is_refused(left: int, tmp_path: Path):
    path = write(tmp_path / "model.gguf", "llama", mixed)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"model\.gguf is truncated or damaged"):
        GgufFile.open(path)


def test_one_part_of_several_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="merge"):
        GgufFile.open(write(tmp_path / "model.gguf", "llama", mixed, split_count=3))


def test_an_architecture_that_transformers_does_not_read_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="plamo"):
        GgufSource.open(write(tmp_path / "model.gguf", "plamo", mixed))


def test_a_missing_weight_is_named(tmp_path: Path):
    file = GgufFile.open(write(tmp_path / "model.gguf", "llama", mixed, without="blk.1.ffn_up.weight"))
    model = build_meta_model(file.config, DTYPE)
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        GgufWeights(model, file, describe(model))


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "model.gguf", "llama", mixed)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: real(name, *rest) if name != "gguf" else None)
    with pytest.raises(CheckpointError, match=r"pip install 'penstock\[gguf\]'"):
        GgufFile.open(path)
