"""Quantise a model to a given size: penstock chooses a format for each matrix, so that the whole fits and loses least.

    python examples/quantise_to_size.py
    python examples/quantise_to_size.py MODEL --sizes 12GiB 8GiB --text some.txt --host-memory 8GiB

Prints the size on flash and the perplexity of a text, for the original and for each size. Each size is a bundle of its
own in the store. `penstock inspect BUNDLE` says which formats it consists of.
"""

import argparse
import math
from pathlib import Path

import torch
from transformers import AutoTokenizer

import penstock

HERE = Path(__file__).parent
MIB = 2**20


def measure(options: argparse.Namespace, weights_format: str) -> tuple[int, float]:
    """The bytes of the weights in this format, and the perplexity of the text with them."""
    ids = AutoTokenizer.from_pretrained(options.model)(options.text.read_text(), return_tensors="pt").input_ids
    ids = ids[:, : options.tokens]
    with penstock.load(
        options.model, weights_format=weights_format, host_memory=options.host_memory, store=options.store
    ) as model:
        with torch.no_grad():
            loss = model(ids, labels=ids, use_cache=False).loss
        size = sum(file.stat().st_size for file in model.penstock.bundle.glob("*.bin"))
        return size, math.exp(loss.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(HERE / "tiny-moe"), metavar="MODEL")
    parser.add_argument("--sizes", nargs="+", default=["8MiB", "6MiB", "4MiB"], metavar="SIZE", help='such as "3.2GiB"')
    parser.add_argument("--text", type=Path, default=HERE / "passage.txt", metavar="FILE", help="what is measured on")
    parser.add_argument("--tokens", type=int, default=512, help="of the text")
    parser.add_argument("--host-memory", default="8MiB", help="memory for the weights")
    parser.add_argument("--store", help="folder for packed models; else ~/.cache/penstock")
    options = parser.parse_args()

    print("format        size on flash  perplexity")
    for weights_format in ["as-is", *(f"fit:{size}" for size in options.sizes)]:
        try:
            size, perplexity = measure(options, weights_format)
        except penstock.ConfigError as error:  # of a size that is too small it says which one would do
            raise SystemExit(str(error)) from error
        print(f"{weights_format:<12}  {size / MIB:9.2f} MiB  {perplexity:10.2f}", flush=True)


if __name__ == "__main__":
    main()
