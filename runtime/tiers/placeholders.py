"""Stand-ins for weights that are not there yet: tensors of a dtype and a shape, without memory."""

import torch

CPU = torch.device("cpu")


def placeholder(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU) -> torch.Tensor:
    """A tensor of this dtype and shape on ``device`` that takes no memory. It is NaN where the dtype has one, so that
    computing on it by mistake is seen."""
    value = float("nan") if dtype.is_floating_point else 0
    return torch.full((), value, dtype=dtype, device=device).expand(shape)
