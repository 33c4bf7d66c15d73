"""Guesses the experts of the next layer: applies its router to the input of the present layer's experts.

The residual stream changes little from layer to layer, so the next router mostly decides as it will a moment later
("Fast Inference of Mixture-of-Experts Language Models with Offloading"). A router is recognised by its weight, which
has a row for each expert. Whatever else a model family does with the scores (bias, groups) only makes the guess worse.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...kernels.weights.packed_weight import PackedWeight

_FEW = 8
"""Tokens up to which a guess for one of them is enough to read an expert."""
_VOTES = 3
"""Of more tokens, how many must choose it."""


class Prediction:
    """The router of one layer, as far as a guess needs it."""

    def __init__(self, router: nn.Module, experts: int) -> None:
        self._router, self._experts = router, experts

    def experts(self, hidden: torch.Tensor, top_k: int) -> list[int]:
        """The experts that the tokens ``hidden`` [tokens, width] will choose. For one token the likeliest is first; for
        several, experts ascend. Of many tokens some must agree: an expert that only one would choose is often wrong.
        Empty where the router's weight is not in memory."""
        weight: Any = self._router._parameters["weight"]
        # By class: other weights call themselves parameters too, and fetch their numbers.
        if not issubclass(type(weight), nn.Parameter | PackedWeight) or weight.dtype != hidden.dtype:
            return []
        chosen = functional.linear(hidden, weight).topk(min(top_k, self._experts), dim=-1).indices
        if len(chosen) == 1:
            return chosen[0].tolist()
        votes = torch.bincount(chosen.flatten(), minlength=self._experts)
        return (votes >= (_VOTES if len(chosen) > _FEW else 1)).nonzero().flatten().tolist()


def predict_with(model: nn.Module, path: str) -> Prediction | None:
    """The Prediction for the experts module at ``path``; None where its router is not recognised."""
    router = router_of(model, path)
    return None if router is None else Prediction(router, int(model.get_submodule(path).num_experts))  # type: ignore[arg-type]


def router_of(model: nn.Module, path: str) -> nn.Module | None:
    """The router of the experts module at ``path``: a module beside it with a weight [experts, width]."""
    parent = path.rpartition(".")[0]
    experts = model.get_submodule(path).num_experts
    for name, child in model.get_submodule(parent).named_modules(prefix=parent):
        weight = child._parameters.get("weight")
        if weight is not None and weight.dim() == 2 and weight.shape[0] == experts and not name.startswith(path):
            return child  # type: ignore[no-any-return]
    return None
