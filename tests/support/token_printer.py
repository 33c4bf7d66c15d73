"""Prints the tokens that the model in the first argument goes on with, one a line."""

import sys
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

import penstock
from tests.support.logits import IDS

folder, store, budget, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])


class _Lines(BaseStreamer):
    def put(self, value: Any) -> None:
        if value.numel() == 1:
            print(int(value), flush=True)

    def end(self) -> None:
        """Nothing is left to print."""


torch.set_num_threads(1)
with penstock.load(folder, store=store, host_memory=budget) as model:
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.generate(IDS[:1], streamer=_Lines(), **options)
