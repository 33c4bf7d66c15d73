"""One run with a long context: fills a KV cache with random numbers, decodes behind it, prints one JSON object.

    python bench/long_decode.py penstock|transformers MODEL --context 16384 [--tokens 12] [--set kv_host_memory=64MiB]

``--hot N``: keys are peaked, every N-th run of 64 tokens has large ones and the others small ones, so that attention
looks at these runs alone. The cache of transformers is DynamicCache, with eager attention.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils  # noqa: F401 (what it takes is not the model's)
from resident import ResidentSet
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import penstock
from penstock.runtime.kv.selectors.certified import Certificates

_PART = 2048
_HOT, _COLD = 40.0, 0.5
_REHEARSALS = 2


def fill(cache: Any, config: Any, context: int, hot: int) -> None:
    """Put ``context`` random tokens into every layer of ``cache``."""
    chance = torch.Generator().manual_seed(0)
    heads = config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        for start in range(0, context, _PART):
            tokens = torch.arange(start, min(context, start + _PART))
            keys, values = torch.randn(2, 1, heads, len(tokens), dim, generator=chance)
            if hot:
                keys *= torch.where(tokens // 64 % hot == 0, _HOT, _COLD)[:, None]
            cache.update(keys.to(config.dtype), values.to(config.dtype), layer)


def decode(model: Any, cache: Any, options: argparse.Namespace, memory: ResidentSet) -> dict[str, Any]:
    """Time tokens one by one behind the context."""
    start = time.perf_counter()
    fill(cache, model.config, options.context, options.hot)
    filled = time.perf_counter() - start
    handle = getattr(model, "penstock", None)
    seconds = []
    for number in range(_REHEARSALS + options.tokens):
        if number == _REHEARSALS and handle is not None:
            before = handle.stats()
        start = time.perf_counter()
        model(torch.tensor([[5 + number]]), past_key_values=cache, use_cache=True)
        seconds.append(time.perf_counter() - start)
    typical = statistics.median(seconds[_REHEARSALS:])
    found = {"seconds": seconds, "token_s": typical, "tokens_per_second": 1 / typical, "fill_s": filled}
    found |= {"peak_resident_bytes": memory.peak}
    if handle is not None:
        after = handle.stats()
        found |= {"kv_bytes_per_token": (after.kv_bytes_read - before.kv_bytes_read) / options.tokens}
        found |= {"kv_stall_s_per_token": (after.kv_stall_seconds - before.kv_stall_seconds) / options.tokens}
        selection = handle.paged.tier.selection
        if selection is not None and isinstance(selection.counters, Certificates):
            certificates = selection.counters
            found |= {"weighed": certificates.weighed / certificates.pages, "omitted": certificates.most_omitted}
    return found


def main() -> None:
    """Run one engine once, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["penstock", "transformers"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, default=16384, help="tokens in the cache")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--hot", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="penstock's settings")
    options = parser.parse_args()
    memory = ResidentSet()
    positions = max(options.context + 64, AutoConfig.from_pretrained(options.model).max_position_embeddings)
    with torch.no_grad():
        if options.engine == "transformers":
            model = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="eager").eval()
            found = decode(model, DynamicCache(config=model.config), options, memory)
        else:
            settings: dict[str, Any] = dict(each.split("=", 1) for each in options.set)
            if "kv_epsilon" in settings:
                settings["kv_epsilon"] = float(settings["kv_epsilon"])
            with penstock.load(options.model, **settings) as model:
                tier = model.penstock.paged.tier
                tier.positions = positions  # what random numbers are attended to needs no trained positions
                found = decode(model, model.penstock.paged.new_cache(), options, memory)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
