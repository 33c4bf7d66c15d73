"""Embeddings that users resize and tie."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..fields import pick
from ..side import Side
from .step import Step


@dataclass(frozen=True)
class Resize(Step):
    """More or fewer tokens, and a forward with a new one."""

    likelihood: ClassVar[int] = 5

    tokens: int = pick(8, -4, 64)
    use_new: bool = pick(True, False)

    def run(self, side: Side) -> Any:
        size = side.vocabulary + self.tokens
        side.model.resize_token_embeddings(size, mean_resizing=False)
        ids = side.ids(1, 8)
        if self.use_new and self.tokens > 0:
            ids[0, 3] = size - 1
        with torch.no_grad():
            return [list(side.base.get_input_embeddings().weight.shape), side.model(ids).logits]


@dataclass(frozen=True)
class Tie(Step):
    """``tie_weights`` again, or the output layer on the embeddings' weight."""

    likelihood: ClassVar[int] = 2

    how: str = pick("again", "by hand")

    def run(self, side: Side) -> Any:
        if self.how == "again":
            side.base.tie_weights()
            return
        head, table = side.base.get_output_embeddings(), side.base.get_input_embeddings()
        if head is not None and head.weight.shape == table.weight.shape:
            head.weight = table.weight
