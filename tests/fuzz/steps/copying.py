"""Copies of a model: in memory, as bytes, as files."""

import copy
import io
import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ..fields import pick
from ..side import Side
from .step import Step


@dataclass(frozen=True)
class Copy(Step):
    """A copy of the model, or of a part of it, and what it computes."""

    likelihood: ClassVar[int] = 6

    how: str = pick("deepcopy", "pickle", "save_pretrained", "torch.save", "layer", "shallow", "module", "functional")

    def run(self, side: Side) -> Any:
        with torch.no_grad():
            return _COPIES[self.how](side)


def _logits(model: Any, side: Side) -> Any:
    return model(side.ids(1, 6)).logits


def _save_pretrained(side: Side) -> Any:
    folder = side.folder / f"copy-{side.ours}"
    side.base.save_pretrained(folder)
    attention = side.base.config._attn_implementation
    return _logits(AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval(), side)


def _torch_save(side: Side) -> Any:
    file = io.BytesIO()
    torch.save(side.base.state_dict(), file)
    file.seek(0)
    return {name: tensor for name, tensor in torch.load(file).items() if isinstance(tensor, torch.Tensor)}


def _module(side: Side) -> Any:
    linear = side.modules(nn.Linear)
    if not linear:
        return None
    module = copy.deepcopy(linear[0][1])
    return module(torch.linspace(-1, 1, module.in_features, dtype=side.base.dtype)[None])


def _functional(side: Side) -> Any:
    name, weight = side.parameters()[0]
    changed = {name: torch.full(weight.shape, 0.125, dtype=weight.dtype)}
    return torch.func.functional_call(side.base, changed, (side.ids(1, 6),)).logits


def _pickle(side: Side) -> Any:
    return _logits(pickle.loads(pickle.dumps(side.base)), side)


def _layer(side: Side) -> Any:
    layers = side.layers()
    return [p.clone() for p in copy.deepcopy(layers[0]).parameters()] if layers else None


_COPIES = {
    "deepcopy": lambda side: _logits(copy.deepcopy(side.base), side),
    "pickle": _pickle,
    "save_pretrained": _save_pretrained,
    "torch.save": _torch_save,
    "layer": _layer,
    "shallow": lambda side: _logits(copy.copy(side.base), side),
    "module": _module,
    "functional": _functional,
}
