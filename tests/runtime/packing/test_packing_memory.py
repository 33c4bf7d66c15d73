"""The resident set of a real process, at its highest while it packs a model far above its budget, for each format."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from penstock.tiering.units import MiB
from tests.support.packing import child
from tests.support.quantised_checkpoints import fp8, gptq, mxfp4, save_pair
from tests.support.tiny_models import save_tiny

BUDGET = 32 * MiB
HIDDEN, INNER, VOCABULARY = 2048, 16384, 32768
WIDE = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 1, "vocab_size": 4096}


def experts(folder: Path) -> Path:
    """185 MB, of which embeddings and output have 67 MB each."""
    sizes = {"hidden_size": 1024, "moe_intermediate_size": 512, "num_experts": 8, "vocab_size": VOCABULARY}
    return save_tiny("qwen3_moe", folder, torch.bfloat16, **sizes)


def in_gptq(folder: Path) -> Path:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
    return save_pair(folder, "llama", config, gptq(32), weights=r"up_proj\.weight", **WIDE).quantised


def in_fp8(folder: Path) -> Path:
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    return save_pair(folder, "llama", config, fp8, weights=r"up_proj\.weight", **WIDE).quantised


def in_mxfp4(folder: Path) -> Path:
    sizes = {"hidden_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 1, "vocab_size": VOCABULARY}
    return save_pair(
        folder, "gpt_oss", {"quant_method": "mxfp4"}, mxfp4, weights=r"experts\.\w+_proj$", **sizes
    ).quantised


def in_gguf(folder: Path) -> Path:
    """Embeddings and output of 71 MB each, in blocks of Q8_0."""
    path = folder.with_suffix(".gguf")
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(16)
    writer.add_head_count_kv(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HIDDEN // 16)
    writer.add_vocab_size(VOCABULARY)
    square = [f"attn_{part}" for part in ("q", "k", "v", "output")] + [f"ffn_{part}" for part in ("gate", "up", "down")]
    rows = {"token_embd": VOCABULARY, "output": VOCABULARY} | {f"blk.0.{name}": HIDDEN for name in square}
    for name, count in rows.items():
        blocks = np.ones((count, HIDDEN // 32 * 34), dtype=np.uint8)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@dataclass(frozen=True)
class Case:
    """``over``: what packing may take besides the budget. Numbers that come quantised in safetensors are held whole,
    matrix by matrix; those of a GGUF file, and what penstock encodes itself, are not."""

    save: Callable[[Path], Path]
    formats: tuple[str, ...]
    over: int


CASES: Mapping[str, Case] = {
    "bfloat16": Case(experts, ("as-is", "lossless", "int8", "int4", "nested"), 24 * MiB),
    "bfloat16, other formats": Case(experts, ("int4-64", "int4-128", "stacked", "fit:140MB"), 24 * MiB),
    "gguf": Case(in_gguf, ("as-is", "int8"), 24 * MiB),
    "gptq": Case(in_gptq, ("as-is", "int8"), 128 * MiB),
    "fp8": Case(in_fp8, ("as-is", "nested"), 128 * MiB),
    "mxfp4": Case(in_mxfp4, ("as-is", "int4"), 128 * MiB),
}
FAST = ("bfloat16", "gguf")


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, int]]:
    """By format, the bytes that packing a source added to the process; each source has one process."""

    @cache
    def of(source: str) -> dict[str, int]:
        folder = tmp_path_factory.mktemp(source)
        path = CASES[source].save(folder / "model")
        files = [path] if path.is_file() else list(path.glob("*.safetensors"))
        assert sum(file.stat().st_size for file in files) > 3 * BUDGET
        formats = CASES[source].formats
        found = child("memory", path, folder / "store", BUDGET, *formats).split()
        shutil.rmtree(folder)
        return dict(zip(formats, map(int, found), strict=True))

    return of


@pytest.mark.parametrize(
    ("source", "name"),
    [
        pytest.param(source, name, marks=[] if source in FAST else pytest.mark.soak)
        for source, case in CASES.items()
        for name in case.formats
    ],
)
def test_packing_stays_within_its_budget(source: str, name: str, peaks: Callable[[str], dict[str, int]]) -> None:
    assert peaks(source)[name] < BUDGET + CASES[source].over
