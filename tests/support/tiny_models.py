"""Tiny random models of many architectures, saved as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

_SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_HEADS = {"head_dim": 16}
_EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "tie_word_embeddings": False},
    "mistral": {**_SIZES, **_HEADS, "sliding_window": 16},
    "qwen2": {**_SIZES, "tie_word_embeddings": True},
    "qwen3": {**_SIZES, **_HEADS, "tie_word_embeddings": True},
    "gemma3_text": {**_SIZES, **_HEADS, "num_hidden_layers": 3, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "phi3": {**_SIZES, "tie_word_embeddings": False},
    "gpt2": {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256,
             "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "opt": {"vocab_size": 320, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 256, "word_embed_proj_dim": 64,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "gpt_neox": {**_SIZES, "num_key_value_heads": None, "tie_word_embeddings": False},
    "mixtral": {**_SIZES, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {**_SIZES, **_EXPERTS, "shared_expert_intermediate_size": 48, "decoder_sparse_step": 1},
    "qwen3_moe": {**_SIZES, **_HEADS, **_EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "olmoe": {**_SIZES, "num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32},
    "deepseek_v3": {**_SIZES, "num_hidden_layers": 3, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16,
                    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 8,
                    "num_local_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
                    "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 32},
    "gpt_oss": {**_SIZES, **_HEADS, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 16,
                "intermediate_size": 32},
    "granitemoe": {**_SIZES, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32},
    "qwen3_next": {**_SIZES, **_HEADS, **_EXPERTS, "num_hidden_layers": 4, "shared_expert_intermediate_size": 48,
                   "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
                   "linear_value_head_dim": 16, "decoder_sparse_step": 1, "mlp_only_layers": []},
}  # fmt: skip

NAMES = tuple(_CONFIGS)
"""The architectures that penstock must run bit for bit like transformers."""

EXPERT_NAMES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss", "granitemoe", "qwen3_next")


def tiny_config(name: str, **overrides: Any) -> PretrainedConfig:
    """A configuration of the model type ``name`` with a few layers and some hundred kilobytes of weights."""
    return AutoConfig.for_model(name, **{**_CONFIGS[name], **overrides})


def shake(model: PreTrainedModel) -> None:
    """Add random numbers to all of ``model``: no weight, bias, norm or buffer has its initial value."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                # Around the initial value: norms stay near one, decay rates stay in their range.
                tensor.add_(torch.randn(tensor.shape).to(tensor.dtype) * 0.05)
                assert torch.count_nonzero(tensor) > 0, key


def save_tiny(
    name: str, folder: Path, dtype: torch.dtype = torch.float32, *, max_shard_size: str = "5GB", **overrides: Any
) -> Path:
    """Save a random model of type ``name`` into ``folder``; no weight, bias, norm or buffer has its initial value."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name, **overrides), dtype=dtype)
    shake(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


LARGER = {
    "llama": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12, "vocab_size": 8000},
    "qwen3_moe": {"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 24, "num_hidden_layers": 5},
}
"""Options that make a tiny model larger than the budgets of tests that watch the resident set."""
