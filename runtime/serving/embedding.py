"""The embedding of a text: the last hidden states of its tokens, pooled."""

from collections.abc import Callable
from typing import Any

import torch

from ...tiering.errors import RequestError
from .requests import Passage, Pooling


def compute_embedding(model: Any, passage: Passage, tell: Callable[[torch.Tensor], None]) -> None:
    """Compute the embedding of ``passage`` with ``model``. ``tell`` is called with it: float32 [width]."""
    ids = torch.tensor([list(passage.prompt)], device=model.device)
    out = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    states = getattr(out, "last_hidden_state", None)
    if states is None:
        raise RequestError(f"a {type(model).__name__} gives no hidden states, so it makes no embeddings")
    tell(pool(states[0], passage.pooling).cpu())


def pool(states: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """``states`` [tokens, width] -> float32 [width], of length 1."""
    states = states.float()
    pooled = states.mean(0) if pooling == "mean" else states[-1 if pooling == "last" else 0]
    return torch.nn.functional.normalize(pooled, dim=-1)
