"""Casts what a loaded model keeps in ordinary memory, as transformers' ``to`` does: buffers, weights of adapters."""

from typing import Any

import torch
from torch import nn

from ...kernels.weights.packed_weight import PackedWeight
from ...tiering.errors import ConfigError
from ..tiers.streamed_weight import StreamedWeight

PLACED = "penstock places the weights itself; choose device and dtype when loading"


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every floating point tensor of ``model`` this ``dtype``. Tables of positions are often float32 in a model of
    half precision: after ``to`` they are not. Raises ConfigError, before anything is cast, if a weight that is read
    from the bundle has another dtype."""
    holders: list[dict[str, Any]] = [
        held for module in model.modules() for held in (module._parameters, module._buffers)
    ]
    others = [
        (holder, name, tensor)
        for holder in holders
        for name, tensor in holder.items()
        if tensor is not None and tensor.dtype != dtype and (tensor.is_floating_point() or tensor.is_complex())
    ]
    if any(isinstance(tensor, StreamedWeight | PackedWeight) for _, _, tensor in others):
        raise ConfigError(PLACED)
    with torch.no_grad():
        for holder, name, tensor in others:
            if isinstance(tensor, nn.Parameter):
                tensor.data = tensor.data.to(dtype)
            else:
                holder[name] = tensor.to(dtype)
