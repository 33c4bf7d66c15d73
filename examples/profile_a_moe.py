"""Which experts does a text use, and what can a cache of them hope for? Records the routing of a run and looks at it.

    python examples/profile_a_moe.py
    python examples/profile_a_moe.py MODEL --host-memory 8GiB --tokens 500 --out story.routes

It records the text that the model writes itself. `penstock profile MODEL --text FILE` records a text that it reads.
A forecast can use the file: `penstock plan MODEL --profile story.routes`, or `penstock.plan(MODEL, routes=routes)`.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer

import penstock
from penstock.routing import report

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

    found = report(routes)
    print(f"{routes.tokens} tokens, {found['experts_per_token']} of {found['experts']} experts for each")
    print("a cache of so many experts  would have been hit by")
    for row in found["cache"]:
        if "auto" in row:  # sizes at which penstock's eviction policies were tried on the trace
            print(f"{row['experts']:>7} ({row['share']:.0%}) {row['auto']:>30.0%}")
    print("layer                       evenness, 1 is even  largest share of one expert")
    for layer in found["by_layer"]:
        print(f"{layer['path']:<27} {layer['entropy']:>19.3f}  {layer['largest_share']:>27.0%}")
    if options.out is not None:
        routes.save(options.out)
        print(f"written: {options.out}")


if __name__ == "__main__":
    main()
