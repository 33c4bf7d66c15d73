"""Writes the random checkpoints that are measured: bfloat16, no download.

    python bench/make_model.py moe|dense|moe-small|dense-small|heavy-kv FOLDER

``moe`` is a Qwen3-MoE of 2.5 B parameters (5.1 GB), ``dense`` a Llama of 1.1 B (2.2 GB); the small ones are for trials.
``heavy-kv`` is a Llama whose KV outweighs it: 267 MB of weights, 32 KiB of KV for each token.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

_COMMON: dict[str, Any] = {
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "num_key_value_heads": 4,
}


def moe(layers: int) -> PreTrainedModel:
    """Make a random Qwen3-MoE."""
    config = Qwen3MoeConfig(
        hidden_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        head_dim=64,
        num_experts=64,
        num_experts_per_tok=8,
        moe_intermediate_size=512,
        intermediate_size=2048,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        **_COMMON,
    )
    model = Qwen3MoeForCausalLM(config)
    # Tokens, not what they have in common, decide the routing: 12, 25, 50 % of the experts serve 24, 49, 83 %.
    model.model.embed_tokens.weight.data *= 30
    return model


def dense(layers: int) -> PreTrainedModel:
    """Make a random Llama."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=32, **_COMMON
        )
    )


def heavy_kv() -> PreTrainedModel:
    """Make a random Llama with more KV than weights."""
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64}
    return LlamaForCausalLM(
        LlamaConfig(**_COMMON | heads, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4)
    )


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("moe", "dense", "moe-small", "dense-small", "heavy-kv"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    small = options.kind.endswith("-small")
    if options.kind == "heavy-kv":
        model = heavy_kv()
    else:
        model = moe(4 if small else 24) if options.kind.startswith("moe") else dense(4 if small else 22)
    model.generation_config.eos_token_id = None
    model.to(torch.bfloat16).save_pretrained(options.folder, max_shard_size="1GB")
    print(options.folder, f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters")


if __name__ == "__main__":
    main()
