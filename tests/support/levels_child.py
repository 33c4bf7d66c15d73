"""Runs a model in some weight formats with the kernels that the environment allows. Prints logits as JSON.

Arguments: checkpoint, store, formats. The logits of a format are those of a prompt and of two more tokens, one by one.
"""

import json
import sys
from pathlib import Path

import torch

import penstock
from penstock.kernels import native
from tests.support.logits import logits

out, folder, store, *formats = sys.argv[1:]
torch.set_num_threads(1)
found = {}
for name in formats:
    with penstock.load(
        folder, store=store, host_memory="64MiB", weights_format=name, attn_implementation="eager"
    ) as model:
        found[name] = [out[:, -1].float().tolist() for out in logits(model, steps=2)]
        one = model(torch.tensor([[5]])).logits
        found[name].append(one[:, -1].float().tolist())
described = native.describe()
Path(out).write_text(json.dumps({"level": described.level, "found": found}))
