"""Tells where autocast has torch compute in another dtype: there no product of ours may take the place of torch's."""

import torch

autocasts = torch._C._is_any_autocast_enabled
"""Whether any autocast context is open. It takes nanoseconds."""


def is_cast(input: torch.Tensor) -> bool:
    """Return whether torch would compute products with ``input`` in another dtype than its own now."""
    if not autocasts():
        return False
    device = input.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != input.dtype
