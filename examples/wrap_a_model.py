"""Wrap a model that is already built: its weights move out to flash, and the same object goes on with fewer bytes.

    python examples/wrap_a_model.py
    python examples/wrap_a_model.py MODEL --host-memory 2GiB

It is for models that are changed after loading, for example by merging an adapter, and for those that are built in
memory. A checkpoint that needs no change is better loaded with `penstock.load`, which never has all of it in memory.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import penstock

TINY = Path(__file__).parent / "tiny-moe"
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(TINY), metavar="MODEL", help="folder or hub id")
    parser.add_argument("--prompt", default="It was a dark evening in November, and the old man")
    parser.add_argument("--host-memory", default="6MiB", help="memory for the weights from then on")
    parser.add_argument("--store", help="folder for packed models; else ~/.cache/penstock")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    # Eager, because that is what bits are compared with: penstock computes experts as transformers' eager code does.
    model = AutoModelForCausalLM.from_pretrained(
        options.model, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    inputs = tokenizer(options.prompt, return_tensors="pt")
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)  # stands for whatever is done to a model in memory
        expected = model(**inputs).logits
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())

    wrapped = penstock.wrap(model, host_memory=options.host_memory, store=options.store)
    with wrapped, torch.no_grad():
        logits = wrapped(**inputs).logits
        stats = wrapped.penstock.stats()
    print(f"the same object:  {'yes' if wrapped is model else 'NO'}")
    print(f"weights before:   {size / MIB:.2f} MiB in memory")
    print(f"weights now:      {stats.resident_bytes / MIB:.2f} MiB in memory, of {stats.host_budget / MIB:.2f} MiB")
    print(f"the same logits:  {'yes, every bit' if torch.equal(logits, expected) else 'NO'}")


if __name__ == "__main__":
    main()
