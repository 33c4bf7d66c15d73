"""Small GGUF files with random weights, and with vocabularies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from tests.support.gguf_blocks import random_blocks

HIDDEN, INNER, VOCABULARY, LAYERS, EXPERTS = 256, 256, 96, 2, 4

Types = Callable[[str], str]
"""The type of the tensor of a name."""


def write(path: Path, architecture: str, types: Types, *, without: str = "", vocabulary: str = "", **more: int) -> Path:
    """A file with random weights, of the model ``architecture``: "llama", "qwen2" or "qwen3moe"; with a ``vocabulary``
    of that kind, "gpt2" or "llama", if one is given."""
    torch.manual_seed(0)
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if architecture != "qwen2":
        shapes["output.weight"] = (VOCABULARY, HIDDEN)
    if architecture == "qwen3moe":
        writer.add_key_length(64)
        writer.add_value_length(64)
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(INNER)
    else:
        writer.add_rope_dimension_count(HIDDEN // 4)
    if vocabulary:
        _add_vocabulary(writer, vocabulary)
    for name, value in more.items():
        writer.add_uint32(name.replace("_", "."), value)
    for layer in range(LAYERS):
        own: dict[str, tuple[int, ...]] = {
            "attn_q.weight": (HIDDEN, HIDDEN),
            "attn_k.weight": (HIDDEN // 2, HIDDEN),
            "attn_v.weight": (HIDDEN // 2, HIDDEN),
            "attn_output.weight": (HIDDEN, HIDDEN),
            "attn_norm.weight": (HIDDEN,),
            "ffn_norm.weight": (HIDDEN,),
        }
        if architecture == "qwen3moe":
            own |= {f"ffn_{part}_exps.weight": (EXPERTS, INNER, HIDDEN) for part in ("gate", "up")}
            own |= {"ffn_down_exps.weight": (EXPERTS, HIDDEN, INNER), "ffn_gate_inp.weight": (EXPERTS, HIDDEN)}
            own |= {"attn_q_norm.weight": (64,), "attn_k_norm.weight": (64,)}
        else:
            own |= {f"ffn_{part}.weight": (INNER, HIDDEN) for part in ("gate", "up")}
            own |= {"ffn_down.weight": (HIDDEN, INNER)}
        if architecture == "qwen2":
            own |= {"attn_q.bias": (HIDDEN,), "attn_k.bias": (HIDDEN // 2,), "attn_v.bias": (HIDDEN // 2,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    for name, shape in shapes.items():
        kind = types(name) if len(shape) > 1 and "gate_inp" not in name else "f32"
        if name == without:
            continue
        if kind in ("f32", "f16"):
            writer.add_tensor(name, torch.randn(shape).numpy().astype({"f32": np.float32, "f16": np.float16}[kind]))
        else:
            rows = random_blocks(kind, int(np.prod(shape[:-1])), shape[-1]).view(*shape[:-1], -1)
            writer.add_tensor(name, rows.numpy(), raw_dtype=GGMLQuantizationType[kind.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def mixed(name: str) -> str:
    """Each kind of weight in another type, as in files that llama.cpp calls Q4_K_M and the like."""
    for part, kind in (("attn_q", "q8_0"), ("attn_k", "q4_0"), ("attn_v", "q6_k"), ("down", "q6_k"), ("embd", "f16")):
        if part in name:
            return kind
    return "q4_k"


def _add_vocabulary(writer: GGUFWriter, kind: str) -> None:
    """Letters, a few words made of them, and control tokens; of as many tokens as the model has."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["ab", "abc", "de", "def", "défaut"] if kind == "gpt2" else ["ab", "abc", "de", "def", "▁d"]
    tokens = ["<unk>", "<s>", "</s>", "Ġ" if kind == "gpt2" else "▁", *letters, *words]
    tokens += [f"<extra_{number}>" for number in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(VOCABULARY)])
    writer.add_token_types([3 if token.startswith("<") else 1 for token in tokens])
    if kind == "gpt2":
        writer.add_tokenizer_pre("smollm")
        writer.add_token_merges(["a b", "ab c", "d e", "de f"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
