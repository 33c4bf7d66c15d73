"""The product of some tokens with one expert, in the operations and the order of transformers' eager experts."""

from collections.abc import Callable

import torch
from torch.nn import functional

Activation = Callable[[torch.Tensor], torch.Tensor]


def expert_product(
    state: torch.Tensor,
    up: torch.Tensor,
    up_bias: torch.Tensor | None,
    down: torch.Tensor,
    down_bias: torch.Tensor | None,
    *,
    transposed: bool,
    activation: Activation,
    post: Activation | None,
) -> torch.Tensor:
    """``post(activation(state @ up) @ down)`` for ``state`` [tokens, hidden]; the result has its shape and dtype.

    ``up`` is [inner, hidden] and ``down`` [hidden, inner'], or the transposes of these if ``transposed``; biases are
    vectors. ``activation`` takes [tokens, inner] to [tokens, inner'], gating included.
    """
    inner = activation(_linear(state, up, up_bias, transposed))
    out = _linear(inner, down, down_bias, transposed)
    return out if post is None else post(out)


def _linear(state: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    out = state @ weight if transposed else functional.linear(state, weight)
    return out if bias is None else out + bias
