"""Runs a model by transformers and in some weight formats, with the kernels of both held to the level that the
environment names. Writes logits as JSON.

Arguments: file, checkpoint, store, formats. The logits of a format are those of a prompt and of two more tokens, one by
one, and of a single token.
"""

import json
import sys
from pathlib import Path
from typing import Any

import penstock  # before torch, which it holds to the level

import torch  # isort: skip
from transformers import AutoModelForCausalLM  # isort: skip

from penstock.kernels import native
from tests.support.logits import logits


def of(model: Any) -> list[Any]:
    found = [out[:, -1].float().tolist() for out in logits(model, steps=2)]
    return [*found, model(torch.tensor([[5]])).logits[:, -1].float().tolist()]


def main(out: str, folder: str, store: str, *formats: str) -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    model.set_experts_implementation("eager")
    expected, found = of(model), {}
    for name in formats:
        with penstock.load(
            folder, store=store, host_memory="64MiB", weights_format=name, attn_implementation="eager"
        ) as streamed:
            found[name] = of(streamed)
    level, torchs = native.describe().level, torch.backends.cpu.get_cpu_capability()
    Path(out).write_text(json.dumps({"level": level, "torch": torchs, "expected": expected, "found": found}))


main(*sys.argv[1:])
