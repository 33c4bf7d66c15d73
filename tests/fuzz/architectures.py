"""Tiny configurations of many architectures, beside those of tests/support/tiny_models.py."""

import dataclasses
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from tests.support.tiny_models import NAMES, tiny_config

_SIZES: dict[str, Any] = {
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
_IMAGE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}  # fmt: skip
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

_MORE: dict[str, dict[str, Any]] = {
    "gemma": {**_SIZES, **_HEADS},
    "gemma2": {**_SIZES, **_HEADS, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "granite": {**_SIZES, "logits_scaling": 4.0, "residual_multiplier": 0.7},
    "cohere": _SIZES,
    "cohere2": {**_SIZES, **_HEADS, "sliding_window": 16},
    "olmo": _SIZES,
    "olmo2": _SIZES,
    "olmo3": {**_SIZES, "sliding_window": 16},
    "phi": _SIZES,
    "stablelm": _SIZES,
    "starcoder2": {**_SIZES, "sliding_window": 16},
    "smollm3": _SIZES,
    "glm": {**_SIZES, **_HEADS},
    "glm4": {**_SIZES, **_HEADS},
    "nemotron": _SIZES,
    "helium": {**_SIZES, **_HEADS},
    "ernie4_5": {**_SIZES, **_HEADS},
    "exaone4": {**_SIZES, "sliding_window": 16},
    "persimmon": {**_SIZES, "num_key_value_heads": None},
    "seed_oss": {**_SIZES, **_HEADS},
    "diffllama": _SIZES,
    "falcon": {**{k: v for k, v in _SIZES.items() if k != "intermediate_size"}, "ffn_hidden_size": 96},
    "bloom": {"vocab_size": 320, "hidden_size": 64, "n_layer": 2, "n_head": 4, **_TOKENS},
    "mpt": {"vocab_size": 320, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256, **_TOKENS},
    "gptj": {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8,
             **_TOKENS},
    "codegen": {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8,
                **_TOKENS},
    "gpt_neo": {"vocab_size": 320, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 16,
                "max_position_embeddings": 256, "attention_types": [[["global", "local"], 1]], **_TOKENS},
    "gpt_bigcode": {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, **_TOKENS},
    "biogpt": {**_SIZES},
    "xglm": {"vocab_size": 320, "d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4,
             "max_position_embeddings": 256, **_TOKENS},
    "phimoe": {**_SIZES, "num_local_experts": 8, "num_experts_per_tok": 2},
    "dots1": {**_SIZES, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2,
              "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "glm4_moe": {**_SIZES, **_HEADS, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                 "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "deepseek_v2": {**_SIZES, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
                    "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1,
                    "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
                    "moe_intermediate_size": 32},
    "mamba": {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, **_TOKENS},
    "lfm2": {**_SIZES, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "jamba": {**_SIZES, "num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2,
              "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False,
              "mamba_d_state": 8, "mamba_dt_rank": 8},
    "bamba": {**_SIZES, "num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16,
              "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16},
    "recurrent_gemma": {**_SIZES, **_HEADS, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 16},
    "gemma3": {"text_config": {**_SIZES, **_HEADS, "num_hidden_layers": 3, "sliding_window": 16,
                               "query_pre_attn_scalar": 16},
               "vision_config": _IMAGE, "mm_tokens_per_image": 4, "image_token_index": 319, "boi_token_index": 317,
               "eoi_token_index": 318, **_TOKENS},
}  # fmt: skip

MULTIMODAL = ("gemma3",)
"""Those that take images."""
WIDE = ("wide llama",)
"""Those with so many columns that torch sums several rows in another order than one."""
CLASSIFIERS = ("llama", "qwen3", "mixtral", "gpt2")
"""Those that are tried with another head."""
QUANTISABLE = ("llama", "qwen3", "mistral")
ARCHITECTURES = (*NAMES, *_MORE, *WIDE)


def config_of(architecture: str, changes: dict[str, Any]) -> PretrainedConfig:
    """A tiny configuration, with those of ``changes`` that the architecture has a key for."""
    if architecture in WIDE:
        sizes = {"hidden_size": 2048, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 32}
        return tiny_config("llama", **{**sizes, "num_key_value_heads": 2})
    made = _config(architecture, {})
    known = {key: value for key, value in changes.items() if key in _keys(made)}
    if changes.get("num_hidden_layers") and getattr(made, "layer_types", None):
        known.pop("num_hidden_layers", None)
    return _config(architecture, known) if known else made


def _config(architecture: str, changes: dict[str, Any]) -> PretrainedConfig:
    if architecture in _MORE:
        return AutoConfig.for_model(architecture, **{**_MORE[architecture], **changes})
    return tiny_config(architecture, **changes)


def _keys(config: PretrainedConfig) -> set[str]:
    return {each.name for each in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set(vars(config))
