"""A model that is larger than the memory it may use: load it with a budget, generate, look at what happened.

    python examples/larger_than_memory.py                                    # the bundled model: 14 MiB in 6 MiB
    python examples/larger_than_memory.py Qwen/Qwen3-30B-A3B --host-memory 8GiB

The first load packs the weights into the store (~/.cache/penstock), once. Later loads read them from there.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, TextStreamer

import penstock

TINY = Path(__file__).parent / "tiny-moe"
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(TINY), metavar="MODEL", help="folder, hub id or bundle")
    parser.add_argument("--prompt", default="It was a dark evening in November, and the old man")
    parser.add_argument("--tokens", type=int, default=64, help="how many to generate")
    parser.add_argument("--host-memory", default="6MiB", help='memory for the weights, such as "8GiB"')
    parser.add_argument("--store", help="folder for packed models; else ~/.cache/penstock")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    # The result is an ordinary transformers model. Leaving the block closes it.
    with penstock.load(options.model, host_memory=options.host_memory, store=options.store) as model:
        torch.manual_seed(7)
        inputs = tokenizer(options.prompt, return_tensors="pt")
        model.generate(
            **inputs, max_new_tokens=options.tokens, do_sample=True, temperature=0.7, streamer=TextStreamer(tokenizer)
        )
        # `model.penstock` is the same. Type checkers know what `handle` gives.
        handle = penstock.handle(model)
        stats, placement = handle.stats(), handle.placement

    print(f"host memory budget:     {placement.budget / MIB:.1f} MiB")
    print(f"stays in memory:        {(placement.resident_bytes + placement.pinned_bytes) / MIB:.1f} MiB")
    print(f"streamed at each token: {placement.streamed_bytes / MIB:.1f} MiB")
    print(f"experts:                {placement.expert_total_bytes / MIB:.1f} MiB, a cache for", end=" ")
    print(f"{placement.expert_region_bytes / MIB:.1f} MiB of them, hit ratio {stats.hit_ratio:.0%}")
    print(f"in memory now:          {stats.resident_bytes / MIB:.1f} MiB")
    print(f"read for each token:    {stats.flash_bytes_read / stats.tokens / MIB:.2f} MiB")
    print(f"waited for the drive:   {stats.stall_seconds:.2f} s")


if __name__ == "__main__":
    main()
