"""``penstock batch`` against the same requests one after the other: prompts that share most of their tokens.

    python bench/cap.py 700MB python bench/batch_file.py MODEL --host-memory 300MiB [--requests 100] [--alone 4]

Each run is the command in a process of its own, with the seconds that it says itself, so without loading. "Alone" is
``--rows 1`` without stored prompts, on the first requests, half of them before the batch and half of them after it. The
model gets a tokenizer whose words are numbers, and a context of which the shared part is at least a block.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import Table, publish
from tokenizers import Tokenizer, models
from tokens import fixed_tokens
from transformers import PreTrainedTokenizerFast


def prepare(model: Path, folder: Path, context: int) -> int:
    """Make a copy of ``model`` in ``folder``, without copying its weights. Returns the size of its vocabulary."""
    folder.mkdir()
    config = json.loads((model / "config.json").read_text())
    for file in model.iterdir():
        if file.name != "config.json":
            os.symlink(file.resolve(), folder / file.name)
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
    words = {str(number): number for number in range(config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return int(config["vocab_size"])


def write_requests(path: Path, prompts: list[list[int]], tokens: int) -> None:
    """Write ``prompts`` as a batch file: greedy answers of up to ``tokens`` tokens."""
    with path.open("w") as file:
        for number, prompt in enumerate(prompts):
            body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0}
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def run(model: Path, source: Path, out: Path, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Run the command on ``source``. Returns what it says."""
    command = [sys.executable, "-c", "from penstock.runtime.cli.main import run; run()", "batch", str(model)]
    command += [str(source), "-o", str(out), "--json", "--store", options.store, "--host-memory", options.host_memory]
    ended = subprocess.run([*command, *more], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--alone", type=int, default=4, help="requests that are tried one after the other")
    parser.add_argument("--prompt", type=int, default=366, help="tokens of a prompt")
    parser.add_argument("--shared", type=int, default=256, help="tokens that all begin with")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batch", default="exact")
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--store", help="keeps the packed model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options.store = options.store or str(folder / "store")
        vocabulary = prepare(options.model, folder / "model", 4 * options.shared)
        common = fixed_tokens(options.shared, vocabulary)
        rest = options.prompt - options.shared
        prompts = [common + fixed_tokens(rest, vocabulary, row=1 + row) for row in range(options.requests)]
        half = options.alone // 2
        parts = {"before": prompts[:half], "all": prompts, "after": prompts[half : options.alone]}
        found = {}
        for name, some in parts.items():
            write_requests(folder / name, some, options.tokens)
            more = ["--rows", "1", "--kv-prefix", "off"]
            if name == "all":
                more = ["--rows", str(options.rows), "--batch", options.batch]
            found[name] = run(folder / "model", folder / name, folder / f"{name}.out", options, *more)
        batch = found["all"]
        alone = (found["before"]["seconds"] + found["after"]["seconds"]) / options.alone
    each = batch["seconds"] / options.requests
    rows = [
        ("one after the other", f"{alone:.2f}", "1.0x", "", f"{found['before']['flash_bytes_per_token'] / 1e6:.1f}"),
        (
            f"batch, {options.rows} rows, {options.batch}",
            f"{each:.2f}",
            f"{alone / each:.1f}x",
            f"{batch['shared_share']:.0%}",
            f"{batch['flash_bytes_per_token'] / 1e6:.1f}",
        ),
    ]
    columns = ("requests", "s for each", "speed", "tokens of prompts shared", "MB read for each token")
    title = f"{options.model.name}, {options.requests} requests of {options.prompt} + {options.tokens} tokens"
    publish([Table(title, columns, rows)], found, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
