"""A checkpoint with code of its own, which multiplies all logits."""

import json
from pathlib import Path
from typing import Any

_CODE = """
from transformers import {base}
from .helper_own import FACTOR


class OwnForCausalLM({base}):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * FACTOR
        return out
"""


def give_own_code(folder: Path, base: type[Any]) -> None:
    """Have the model in ``folder``, of the class ``base``, run through code that lies beside it."""
    (folder / "helper_own.py").write_text("FACTOR = 1.25\n")
    (folder / "modeling_own.py").write_text(_CODE.format(base=base.__name__))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config["architectures"] = ["OwnForCausalLM"]
    path.write_text(json.dumps(config))
