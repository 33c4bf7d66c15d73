"""Gradients: of inputs, and of weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..fields import pick
from ..side import Side
from .step import Step


@dataclass(frozen=True)
class Gradient(Step):
    """The gradient of a loss: of embeddings that the user made, of one weight, or of adapters."""

    likelihood: ClassVar[int] = 3

    of: str = pick("inputs", "weight", "adapters", "freeze")

    def run(self, side: Side) -> Any:
        ids = side.ids(1, 6)
        if self.of == "freeze":
            side.base.requires_grad_(False)
            return None
        if self.of == "inputs":
            with torch.no_grad():
                found = side.base.get_input_embeddings()(ids).clone()
            found.requires_grad_()
            side.model(inputs_embeds=found).logits.float().sum().backward()
            return found.grad
        side.model(ids, labels=ids).loss.backward()
        weights = side.model.named_parameters()
        if self.of == "weight":
            gradient = next(iter(side.parameters()))[1].grad
            return None if gradient is None else gradient.clone()
        return [p.grad.clone() for name, p in weights if "lora_" in name and p.grad is not None]
