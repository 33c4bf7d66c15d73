"""The main job in one minute: a model that runs in less memory than it has bytes, and says the same as in RAM.

    python examples/demo.py [MODEL_FOLDER]

Needs no network: the default model is examples/tiny-moe. Its bundle is packed into a temporary store.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TextStreamer
from transformers.utils import logging

import penstock

PROMPT = "It was a dark evening in November, and the old man"
TOKENS = 96
SHARES = (0.4, 0.5, 0.75, 1.1)


def shown(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**20:.2f} MiB"


def generate(model: PreTrainedModel, tokenizer: AutoTokenizer, *, show: bool = False) -> tuple[list[int], float]:
    """Sample ``TOKENS`` tokens from a fixed seed; the token ids, and tokens per second."""
    torch.manual_seed(7)
    streamer = TextStreamer(tokenizer) if show else None
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    start = time.perf_counter()
    out = model.generate(
        ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=True, temperature=0.7, top_p=0.9, streamer=streamer
    )
    return out[0].tolist(), TOKENS / (time.perf_counter() - start)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "tiny-moe"
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else 100)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    reference = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    expected, in_memory = generate(reference, tokenizer)
    del reference

    table = Table(title=f"{folder.name}: {shown(size)} of weights, {TOKENS} tokens")
    for column in ("host budget", "resident", "hit ratio", "flash bytes/token", "tokens/s", "same tokens"):
        table.add_column(column, justify="right", overflow="fold")
    with tempfile.TemporaryDirectory() as store:
        for share in SHARES:
            with penstock.load(
                folder, store=store, host_memory=int(share * size), attn_implementation="eager"
            ) as model:
                if share == SHARES[0]:
                    console.rule(f"{folder.name} in {shown(int(share * size))} of host memory")
                    generate(model, tokenizer, show=True)
                    console.rule()
                before = model.penstock.stats()
                ids, speed = generate(model, tokenizer)
                after = model.penstock.stats()
                hits = after.expert_hits - before.expert_hits
                asked = hits + after.expert_misses - before.expert_misses
                table.add_row(
                    shown(after.host_budget),
                    shown(after.resident_bytes),
                    f"{hits / asked:.1%}",
                    shown((after.flash_bytes_read - before.flash_bytes_read) / TOKENS),
                    f"{speed:.1f}",
                    "yes" if ids == expected else "NO",
                )
    table.add_row("in RAM", shown(size), "", shown(0), f"{in_memory:.1f}", "reference")
    console.print(table)


if __name__ == "__main__":
    main()
