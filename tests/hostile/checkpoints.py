"""Checkpoints as strangers make them: GGUF files, safetensors, JSON beside them, quantised weights."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import penstock
from tests.hostile.bundles import bundle_in, means
from tests.hostile.checkpoint_mutations import mutate_gguf, mutate_json, mutate_quantised, mutate_safetensors
from tests.hostile.kind import Result, equal
from tests.support.logits import logits
from tests.support.more_quantised import four_bits
from tests.support.quantised_checkpoints import Pair, awq, fp8, gptq, mxfp4, save_pair
from tests.support.tiny_models import save_tiny
from tests.support.whole_numbers import save_gguf

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}


@dataclass(frozen=True)
class CheckpointKind:
    """Checkpoints that ``save`` makes in a folder, and ``change`` changes; ``file`` is the one to load, if not all."""

    save: Callable[[Path], Any]
    change: Callable[[random.Random, Path], str]
    file: str = ""
    judged: bool = True
    """Whether transformers can read such a checkpoint too."""

    def make(self, folder: Path) -> None:
        """As Kind."""
        self.save(folder / "checkpoint")

    def mutate(self, rng: random.Random, folder: Path) -> str:
        """As Kind."""
        return self.change(rng, folder / "checkpoint" / self.file)

    def use(self, folder: Path, way: int) -> Result:
        """As Kind."""
        options: dict[str, Any] = {"store": folder / "store", "host_memory": "64MiB", "attn_implementation": "eager"}
        if way % 3 == 0:
            penstock.plan(folder / "checkpoint" / self.file, store=folder / "store", host_memory="64MiB")
        with penstock.load(folder / "checkpoint" / self.file, **options) as model:
            return [*logits(model)]

    def is_right(self, folder: Path, result: Result, way: int) -> bool:
        """As Kind. Where transformers cannot read the checkpoint, what it computes with the numbers in the bundle is
        right: whether these are the checkpoint's is tried in tests/runtime/checkpoints/quantisation."""
        if not self.judged:
            return means(bundle_in(folder), result)
        where = folder / "checkpoint"
        more = {"gguf_file": self.file, "dtype": torch.float32} if self.file.endswith(".gguf") else {}
        model = AutoModelForCausalLM.from_pretrained(where, **EAGER, **more).eval()
        return equal(result, [*logits(model)])


def _save_gguf(folder: Path) -> None:
    folder.mkdir()
    save_gguf(folder / "model.gguf")


def _save_sharded(folder: Path) -> None:
    whole = save_tiny("qwen3_moe", folder.with_name("whole"))
    model = AutoModelForCausalLM.from_pretrained(whole)
    model.save_pretrained(folder, max_shard_size="100KB")


def _quantised(save: Callable[[Path], Pair]) -> Callable[[Path], None]:
    def save_one(folder: Path) -> None:
        save(folder.with_name("pair")).quantised.rename(folder)

    return save_one


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(0))
QKV = r"self_attn\.[qkv]_proj\.weight"
QUANTISED: dict[str, Callable[[Path], Pair]] = {
    "gptq": lambda folder: save_pair(folder, "llama", GPTQ, gptq(32, order=ORDER), weights=QKV),
    "awq": lambda folder: save_pair(folder, "llama", AWQ, awq(32)),
    "fp8": lambda folder: save_pair(folder, "qwen3_moe", FP8, fp8, moe_intermediate_size=128, hidden_size=256),
    "mxfp4": lambda folder: save_pair(
        folder, "gpt_oss", {"quant_method": "mxfp4"}, mxfp4, weights=r"experts\.\w+_proj$"
    ),
    "bnb": lambda folder: save_pair(folder, "llama", FOUR_BITS, four_bits(nested=False)),
}


def _mutate_a_json(rng: random.Random, folder: Path) -> str:
    path = rng.choice(sorted(folder.glob("*.json")))
    return f"{path.name}: {mutate_json(rng, path)}"


def _mutate_a_shard(rng: random.Random, folder: Path) -> str:
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    return f"{path.name}: {mutate_safetensors(rng, path)}"


CHECKPOINTS: dict[str, CheckpointKind] = {
    "gguf": CheckpointKind(_save_gguf, mutate_gguf, "model.gguf"),
    "safetensors": CheckpointKind(_save_sharded, _mutate_a_shard),
    "json": CheckpointKind(_save_sharded, _mutate_a_json),
    **{
        f"quantised-{method}": CheckpointKind(_quantised(save), mutate_quantised, judged=False)
        for method, save in QUANTISED.items()
    },
}
