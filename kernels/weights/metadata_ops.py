"""Functions of torch by what they need of a tensor. The metadata is enough for some; others make arrays of it.

Models look at a weight's metadata far more often than they compute with it.
"""

from typing import Any

import torch

LOOKS = frozenset(
    {
        *(getattr(torch.Tensor, name).__get__ for name in ("dtype", "device", "shape", "ndim", "layout")),
        *(getattr(torch.Tensor, name).__get__ for name in ("requires_grad", "is_meta", "is_cuda", "is_cpu")),
        *(getattr(torch.Tensor, name).__get__ for name in ("is_sparse", "itemsize")),
        *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "element_size")),
    }
)
"""Functions that need the metadata alone, as ``__torch_function__`` receives them."""

ARRAYS: frozenset[Any] = frozenset((torch.Tensor.numpy, torch.Tensor.__array__))
"""Functions that make an array on a tensor's memory. The array of a copy is made read-only: a write would be lost."""
