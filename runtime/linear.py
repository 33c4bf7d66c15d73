"""Linear layers on a few rows: the same bits as torch's, in one pass over the weight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..kernels.products import MOST_ROWS, products

Forward = Callable[[torch.Tensor], torch.Tensor]


def few_rows(module: nn.Module, original: Forward) -> Forward | None:
    """A forward for ``module`` that takes the product for a few rows where there is one, and else goes on to
    ``original``; None where it never would."""
    linear: Any = module
    if type(module) is not nn.Linear or linear.bias is not None or linear.weight.dtype != torch.bfloat16:
        return None
    n, k = linear.weight.shape

    def forward(input: torch.Tensor) -> torch.Tensor:
        rows = input.numel() // k
        if rows > MOST_ROWS or input.dtype != torch.bfloat16:
            return original(input)
        weight = linear._parameters["weight"]
        # torch does not fold a batch into rows, and sums in another order, if neither holds.
        if not isinstance(weight, nn.Parameter) or not weight.is_contiguous():
            return original(input)
        if not (weight.requires_grad or input.is_contiguous()):
            return original(input)
        product = products(rows, n, k)
        if product is None or input.shape[-1] != k:
            return original(input)
        state = input.contiguous()
        return product([weight.data_ptr()], [state.data_ptr()]).view(*input.shape[:-1], n)

    return forward
