"""Hyper-parameters that do not fit a file's tensors are named, with the file."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFWriter

from penstock.runtime.checkpoints.files.gguf_file import GgufFile
from penstock.runtime.checkpoints.files.gguf_header import parse_gguf_header
from penstock.runtime.checkpoints.files.gguf_hyperparameters import misfit, parts_of
from penstock.runtime.checkpoints.files.gguf_types import GgufHeader, HeaderTensor
from penstock.runtime.checkpoints.gguf_source import GgufSource
from penstock.runtime.packing.pack import pack
from penstock.tiering.errors import CheckpointError
from tests.support.gguf_files import write

Change = Callable[[GGUFWriter], None]


def changed(folder: Path, architecture: str, key: str, change: Change, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An honest file in which ``change`` adds what is called ``key``, in the place of what the file has."""
    real = GGUFWriter.add_key_value

    def without(self: GGUFWriter, own: str, *rest: object, **more: object) -> None:
        if own != key:
            real(self, own, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(GGUFWriter, "add_key_value", without)
    opened = GGUFWriter.write_header_to_file

    def last(self: GGUFWriter, *rest: object) -> None:
        monkeypatch.setattr(GGUFWriter, "add_key_value", real)
        change(self)
        opened(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(GGUFWriter, "write_header_to_file", last)
    return write(folder / "model.gguf", architecture, lambda name: "q8_0")


@pytest.mark.parametrize(
    ("architecture", "key", "change"),
    [
        ("llama", "split.count", lambda w: w.add_string("split.count", "3")),
        ("llama", "split.no", lambda w: w.add_int32("split.no", -1)),
        ("llama", "llama.block_count", lambda w: w.add_uint32("llama.block_count", 1)),
        ("llama", "llama.block_count", lambda w: w.add_uint32("llama.block_count", 0)),
        ("llama", "llama.block_count", lambda w: w.add_uint32("llama.block_count", 1_000_000)),
        ("llama", "llama.block_count", lambda w: w.add_string("llama.block_count", "2")),
        ("llama", "llama.block_count", lambda w: w.add_float32("llama.block_count", 2.5)),
        ("llama", "llama.embedding_length", lambda w: w.add_uint32("llama.embedding_length", 128)),
        ("llama", "llama.attention.head_count", lambda w: w.add_uint32("llama.attention.head_count", 0)),
        ("llama", "llama.rope.freq_base", lambda w: w.add_float32("llama.rope.freq_base", -1.0)),
        ("qwen3moe", "qwen3moe.expert_count", lambda w: w.add_uint32("qwen3moe.expert_count", 1 << 30)),
        ("qwen3moe", "qwen3moe.expert_count", lambda w: w.add_uint32("qwen3moe.expert_count", 3)),
        ("qwen3moe", "qwen3moe.expert_used_count", lambda w: w.add_uint32("qwen3moe.expert_used_count", 5)),
        ("qwen3moe", "qwen3moe.expert_used_count", lambda w: None),
    ],
)
def test_a_misfit_is_named(
    architecture: str, key: str, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed(tmp_path, architecture, key, change, monkeypatch)
    said = misfit(parse_gguf_header(path))
    assert said is not None
    assert key in said
    with pytest.raises(CheckpointError, match=key) as caught:
        GgufFile.open(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("heads", "kv"), [(3, 2), (4, 3), (8, 2), (2, 2), (1 << 20, 2)])
def test_head_counts_that_do_not_fit_the_tensors_are_an_error_of_the_file(
    heads: int, kv: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(writer: GGUFWriter) -> None:
        writer.add_uint32("llama.attention.head_count", heads)
        writer.kv_data[0].pop("llama.attention.head_count_kv")
        writer.add_uint32("llama.attention.head_count_kv", kv)
        writer.kv_data[0].pop("llama.rope.dimension_count")

    path = changed(tmp_path, "llama", "llama.attention.head_count", change, monkeypatch)
    with pytest.raises(CheckpointError):
        pack(GgufSource.open(path), store=tmp_path / "store").close()


def test_a_model_without_attention_has_no_heads(tmp_path: Path) -> None:
    """As llama.cpp writes files of Mamba."""
    values = {
        "general.architecture": "mamba",
        "mamba.context_length": 1 << 20,
        "mamba.block_count": 1,
        "mamba.embedding_length": 64,
        "mamba.feed_forward_length": 0,
        "mamba.attention.head_count": 0,
        "mamba.attention.layer_norm_rms_epsilon": 0.0,
    }
    tensors = {
        name: HeaderTensor(name, "F32", (64, 64), 0, 16384) for name in ("token_embd.weight", "blk.0.ssm_in.weight")
    }
    assert misfit(GgufHeader(3, values, {}, tensors, ())) is None
    tensors["blk.0.attn_q.weight"] = HeaderTensor("blk.0.attn_q.weight", "F32", (64, 64), 0, 16384)
    assert "mamba.attention.head_count is 0" in str(misfit(GgufHeader(3, values, {}, tensors, ())))


def test_a_file_of_one_part_may_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = changed(tmp_path, "llama", "split.count", lambda w: w.add_uint16("split.count", 0), monkeypatch)
    assert parts_of(parse_gguf_header(path)) == 1
    assert GgufFile.open(path).config.num_hidden_layers == 2
