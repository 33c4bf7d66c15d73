"""Modules called alone, as for lenses, probes and embeddings."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from ..contexts import within
from ..fields import pick
from ..side import Side
from .step import Step


@dataclass(frozen=True)
class CallLinear(Step):
    """One linear module on states of the user's."""

    likelihood: ClassVar[int] = 5

    which: int = pick(0, 1, 3, 7, -1)
    rows: int = pick(3, 1, 20)
    context: str = pick("no_grad", "plain", "inference_mode", "autocast")

    def run(self, side: Side) -> Any:
        found = side.modules(nn.Linear)
        if not found:
            return None
        _, module = found[self.which % len(found)]
        states = torch.randn(self.rows, module.in_features).to(side.base.dtype)
        with within(self.context):
            return module(states)


@dataclass(frozen=True)
class Lens(Step):
    """Logits of hidden states, by the output layer's module or by its weight."""

    likelihood: ClassVar[int] = 6

    how: str = pick("module", "transpose", "linear", "matmul", "einsum", "rows")
    context: str = pick("no_grad", "plain", "autocast")

    def run(self, side: Side) -> Any:
        with within(self.context):
            states = side.model(**side.inputs(1, 7), output_hidden_states=True).hidden_states[-1]
            head = side.base.get_output_embeddings()
            if head is None or not isinstance(head, nn.Linear):
                return None
            if self.how == "module":
                return head(states)
            weight = head.weight
            if self.how == "transpose":
                return states @ weight.T
            if self.how == "linear":
                return functional.linear(states, weight)
            if self.how == "matmul":
                return torch.matmul(weight[:40], states[0].transpose(0, 1))
            if self.how == "einsum":
                return torch.einsum("btd,vd->btv", states, weight)
            return functional.cosine_similarity(weight[3:9].float(), weight[12:18].float())


@dataclass(frozen=True)
class CallBase(Step):
    """The model without its output layer."""

    def run(self, side: Side) -> Any:
        with torch.no_grad():
            return side.base.base_model(**side.inputs(2, 8)).last_hidden_state


@dataclass(frozen=True)
class CallEmbedding(Step):
    """The input embeddings of some tokens; the nearest rows to one of them."""

    how: str = pick("module", "functional", "nearest", "mean")

    def run(self, side: Side) -> Any:
        table = side.base.get_input_embeddings()
        ids = side.ids(2, 5)
        with torch.no_grad():
            if self.how == "module":
                return table(ids)
            if self.how == "functional":
                return functional.embedding(ids, table.weight)
            if self.how == "mean":
                return table.weight.float().mean(0)
            return (table.weight.float() @ table.weight[7].float()).topk(5).values
