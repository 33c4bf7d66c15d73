"""Says when drafts are checked in another order of sums than tokens that are computed one by one."""

import warnings

import torch
from torch import nn

WIDE = 2048
"""Columns from which on torch sums several bfloat16 rows in another order than one."""


def warn_of_drafts(model: nn.Module) -> None:
    """Warn that the text of ``model`` with drafts may differ from that without, if its products may."""
    dtype = getattr(model, "dtype", torch.float32)
    if dtype == torch.bfloat16 and not any(weight.dim() > 1 and weight.shape[-1] >= WIDE for weight in _weights(model)):
        return
    name = str(dtype).removeprefix("torch.")
    warnings.warn(
        f"prompt lookup and assisted decoding compute several tokens at once, and torch adds up several rows of {name} "
        "in another order than one: where two tokens are nearly tied, the text can differ from that of plain decoding, "
        "as it can in transformers",
        stacklevel=3,
    )


def _weights(model: nn.Module) -> list[torch.Tensor]:
    """The parameters of ``model``, which may be placeholders."""
    return [weight for module in model.modules() for weight in module._parameters.values() if weight is not None]
