"""Checkpoints of whole numbers, written name by name: every byte is the same on every machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import save_file

VOCABULARY, HIDDEN, INNER, HEADS, EXPERTS, LAYERS = 320, 256, 128, 4, 8, 2
PAIRS = ((0, 7), (1, 6), (2, 5), (3, 4))
"""Experts to be used together."""

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": INNER},
    "qwen3_moe": {
        "moe_intermediate_size": INNER,
        "intermediate_size": INNER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS // 2,
    "head_dim": HIDDEN // HEADS,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
QUANTISED: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
}


class Chance:
    """Integers from a generator that numpy keeps the same between versions and machines."""

    def __init__(self) -> None:
        self._random = np.random.Generator(np.random.PCG64(7))

    def below(self, high: int, *shape: int) -> torch.Tensor:
        """int64 ``shape``, from 0."""
        return torch.from_numpy(self._random.integers(0, high, shape))

    def weights(self, *shape: int) -> torch.Tensor:
        """bfloat16 ``shape``: quarters, small ones more often."""
        return ((self.below(15, *shape) - 7) * self.below(8, *shape) / 4).bfloat16()


def shapes_of(kind: str) -> dict[str, tuple[int, ...]]:
    """The weights of a checkpoint of the model type ``kind``."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        own: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (HIDDEN,),
            "post_attention_layernorm.weight": (HIDDEN,),
            "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            "self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN),
            "self_attn.v_proj.weight": (HIDDEN // 2, HIDDEN),
            "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        }
        parts = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
        if kind == "qwen3_moe":
            own |= {f"self_attn.{name}_norm.weight": (HIDDEN // HEADS,) for name in "qk"}
            own["mlp.gate.weight"] = (EXPERTS, HIDDEN)
            for expert in range(EXPERTS):
                own |= {f"mlp.experts.{expert}.{part}.weight": shape for part, shape in parts.items()}
        else:
            own |= {f"mlp.{part}.weight": shape for part, shape in parts.items()}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    return shapes


def state_of(kind: str) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint, by name."""
    chance = Chance()
    return {name: chance.weights(*shape) for name, shape in shapes_of(kind).items()}


def save_checkpoint(kind: str, folder: Path, method: str | None = None) -> Path:
    """A checkpoint of the model type ``kind``, its projections quantised by ``method``."""
    chance, stored = Chance(), dict[str, torch.Tensor]()
    for name, shape in shapes_of(kind).items():
        if method is not None and name.endswith("_proj.weight"):
            stem = name.removesuffix(".weight")
            stored |= {stem + end: part for end, part in _quantised(chance, method, *shape).items()}
        else:
            stored[name] = chance.weights(*shape)
    folder.mkdir(parents=True)
    save_file(stored, folder / "model.safetensors")
    config = {"model_type": kind, **_COMMON, **CONFIGS[kind]}
    if method is not None:
        config["quantization_config"] = QUANTISED[method]
    (folder / "config.json").write_text(json.dumps(config, sort_keys=True))
    return folder


def _quantised(chance: Chance, method: str, n: int, k: int) -> Mapping[str, torch.Tensor]:
    if method == "fp8":
        scales = torch.exp2((chance.below(8, -(-n // 128), -(-k // 128)) - 9).float())
        return {".weight": chance.below(120, n, k).byte().view(torch.float8_e4m3fn), ".weight_scale_inv": scales}
    along, groups = (k // 8, n) if method == "gptq" else (k, n // 8), k // 32
    return {
        ".qweight": (chance.below(1 << 32, *along) - (1 << 31)).int(),
        ".qzeros": (chance.below(1 << 32, groups, n // 8) - (1 << 31)).int(),
        ".scales": torch.exp2((chance.below(8, groups, n) - 12).float()).half(),
    }


def save_gguf(path: Path) -> Path:
    """A llama in blocks of Q8_0, with embeddings in float16."""
    chance, writer = Chance(), GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCABULARY)
    rows = {"attn_q": HIDDEN, "attn_k": HIDDEN // 2, "attn_v": HIDDEN // 2, "attn_output": HIDDEN}
    rows |= {"ffn_gate": INNER, "ffn_up": INNER, "ffn_down": HIDDEN}
    blocks = {f"blk.{layer}.{name}": count for layer in range(LAYERS) for name, count in rows.items()}
    for name, count in {**blocks, "output": VOCABULARY}.items():
        columns = INNER if "ffn_down" in name else HIDDEN
        numbers = chance.below(256, count, columns // 32, 34).byte()
        numbers[:, :, :2] = torch.exp2((chance.below(4, count, columns // 32, 1) - 8).float()).half().view(torch.uint8)
        writer.add_tensor(f"{name}.weight", numbers.view(count, -1).numpy(), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", chance.weights(VOCABULARY, HIDDEN).half().numpy())
    norms = [f"blk.{layer}.{name}_norm.weight" for layer in range(LAYERS) for name in ("attn", "ffn")]
    for name in ("output_norm.weight", *norms):
        writer.add_tensor(name, chance.weights(HIDDEN).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
