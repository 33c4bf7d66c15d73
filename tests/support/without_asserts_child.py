"""Streams a tiny model, plans it, and makes mistakes, with ``python -O`` or without; says what came of it."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import penstock
from tests.support.logits import IDS, logits
from tests.support.tiny_models import save_tiny


def mistake(call: Callable[[], object]) -> None:
    try:
        call()
    except penstock.PenstockError as error:
        print(type(error).__name__)


torch.set_num_threads(1)
place = Path(sys.argv[1])
folder = save_tiny("qwen3_moe", place / "model", torch.float32)
reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager")
expected = logits(reference.eval())
model = penstock.load(folder, store=place / "store", host_memory="700KB", attn_implementation="eager")
if all(torch.equal(a, b) for a, b in zip(expected, logits(model), strict=True)):
    print("equal")
if penstock.plan(folder, store=place / "store", host_memory="700KB").forecast is not None:
    print("planned")
mistake(lambda: penstock.load(folder, store=place / "store", host_memory=1000))
model.penstock.close()
mistake(lambda: model(IDS))
