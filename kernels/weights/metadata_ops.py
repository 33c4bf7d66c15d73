"""Operations that need a tensor's metadata only.

Models use them on a weight far more often than they compute with it.
"""

import torch

LOOKS = frozenset(
    {
        *(getattr(torch.Tensor, name).__get__ for name in ("dtype", "device", "shape", "ndim", "layout")),
        *(getattr(torch.Tensor, name).__get__ for name in ("requires_grad", "is_meta", "is_cuda", "is_cpu")),
        *(getattr(torch.Tensor, name).__get__ for name in ("is_sparse", "itemsize")),
        *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "element_size")),
    }
)
"""Functions as ``__torch_function__`` receives them."""
