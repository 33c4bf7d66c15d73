"""Which experts does a text use, and what can a cache of them hope for? Records the routing of a run and looks at it.

    python examples/profile_a_moe.py
    python examples/profile_a_moe.py MODEL --host-memory 8GiB --tokens 500 --out story.routes

What is recorded here is what the model writes itself. `penstock profile MODEL --text FILE` records a text that it
reads, and says more. `penstock plan MODEL --profile story.routes` uses the file for its forecast.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer

import penstock

TINY = Path(__file__).parent / "tiny-moe"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(TINY), metavar="MODEL", help="folder, hub id or bundle")
    parser.add_argument("--prompt", default="It was a dark evening in November, and the old man")
    parser.add_argument("--tokens", type=int, default=160, help="how many to generate")
    parser.add_argument("--host-memory", default="8MiB", help="memory for the weights")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the routing trace in this file")
    parser.add_argument("--store", help="folder for packed models; else ~/.cache/penstock")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with penstock.load(options.model, host_memory=options.host_memory, store=options.store) as model:
        torch.manual_seed(7)
        inputs = tokenizer(options.prompt, return_tensors="pt")
        with model.penstock.profile("a story") as recording:
            model.generate(**inputs, max_new_tokens=options.tokens, do_sample=True, temperature=0.7)
        routes = recording.routes()

    print(f"{routes.tokens} tokens through {len(routes.layers)} layers of experts")
    print("layer                  used per token  busiest quarter has  as for the token before")
    for layer in routes.layers:
        used = layer.used()  # [tokens, experts]: whether the token went through the expert
        uses = sorted(used.sum(axis=0), reverse=True)
        busiest = sum(uses[: len(uses) // 4]) / sum(uses)
        again = (used[1:] & used[:-1]).sum() / used[1:].sum()
        print(f"{layer.path:<22} {layer.top_k:>7} of {layer.experts:<4} {busiest:>19.0%}  {again:>23.0%}")
    if options.out is not None:
        routes.save(options.out)
        print(f"written: {options.out}")


if __name__ == "__main__":
    main()
