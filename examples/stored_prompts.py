"""Prompts that begin alike: what they share is computed twice at most, stored on flash, and restored from then on.

    python examples/stored_prompts.py
    python examples/stored_prompts.py MODEL --text manual.txt --host-memory 8GiB

Asks several questions about one document. Run it again: even the first question finds the document in the store. The
answers stay the same, to the byte. Prompts are stored in blocks (of 1024 tokens, for most models), as long as they
take no more than `kv_prefix` bytes.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import penstock

HERE = Path(__file__).parent
QUESTIONS = [
    "Who is on the throne?",
    "What did the Captain do?",
    "Where was the Lord Mayor?",
    "What was it the age of?",
]


def ask(model: Any, tokenizer: Any, document: str, question: str, tokens: int) -> None:
    """Print the answer to one question, and how much of the prompt had to be computed."""
    ids = tokenizer(document + "\n\n" + question, return_tensors="pt").input_ids
    before = model.penstock.stats()
    start = time.perf_counter()
    output = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    seconds = time.perf_counter() - start
    restored = model.penstock.stats().prefix_tokens_restored - before.prefix_tokens_restored
    print(f"{question:<28} {ids.shape[1]} tokens, {restored} restored, {seconds:.2f} s", end="  ")
    print(repr(tokenizer.decode(output[0, ids.shape[1] :])))
    # Storing goes on in the background. A program that serves one question after the other need not wait for it.
    model.penstock.prefixes.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(HERE / "tiny-moe"), metavar="MODEL")
    parser.add_argument("--text", type=Path, default=HERE / "passage.txt", metavar="FILE", help="the document")
    parser.add_argument("--characters", type=int, default=2400, help="how much of the document is used")
    parser.add_argument("--tokens", type=int, default=12, help="how many to generate for each question")
    parser.add_argument("--host-memory", default="8MiB", help="memory for the weights")
    parser.add_argument("--prefix", default="1GiB", metavar="SIZE", help="room for stored prompts on flash")
    parser.add_argument("--store", help="folder for packed models and prompts; else ~/.cache/penstock")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    document = options.text.read_text()[: options.characters]
    with penstock.load(
        options.model, host_memory=options.host_memory, kv_prefix=options.prefix, store=options.store
    ) as model:
        if model.penstock.prefixes is None:
            raise SystemExit(model.penstock.stats().prefix_problem)
        print(f"prompts are stored in blocks of {model.penstock.prefixes.block} tokens")
        for question in QUESTIONS:
            ask(model, tokenizer, document, question, options.tokens)
        stats = model.penstock.stats()
    print(f"stored: {stats.prefix_bytes_written} bytes, restored in {stats.prefix_hits} prompts")


if __name__ == "__main__":
    main()
