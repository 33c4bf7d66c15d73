"""Runs the model in the first argument with an installed Penstock, in the folder of the second; says how, as JSON."""

import json
import sys
from collections.abc import Callable
from typing import Any

from penstock.kernels import native

calls: dict[str, int] = {}


def counted(name: str) -> None:
    original: Callable[..., Any] = getattr(native.KERNELS, name)

    def count(*arguments: Any) -> Any:
        calls[name] = calls.get(name, 0) + 1
        return original(*arguments)

    setattr(native.KERNELS, name, count)


if native.KERNELS is not None:
    counted("products")

from transformers import AutoTokenizer  # noqa: E402

import penstock  # noqa: E402 - what it imports finds the counted kernels

model_folder, store = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_folder)
with penstock.load(model_folder, host_memory="8MiB", store=store) as model:
    ids = tokenizer("Once upon a time", return_tensors="pt")
    tokens = model.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist()
found = native.describe()
report = {"file": penstock.__file__, "version": penstock.__version__, "tokens": tokens, "calls": calls}
print(json.dumps(report | {name: getattr(found, name) for name in found.__slots__}))
