"""Stand-ins for weights that are not in memory: they have a dtype and a shape, and are fetched when computed on."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from ...kernels.weights.metadata_ops import LOOKS
from ...tiering.errors import UnplaceableModule

CPU = torch.device("cpu")


def placeholder(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU) -> torch.Tensor:
    """A tensor of this dtype and shape on ``device`` that takes no memory. It is NaN where the dtype has one, so that
    computing on it by mistake is seen."""
    value = float("nan") if dtype.is_floating_point else 0
    return torch.full((), value, dtype=dtype, device=device).expand(shape)


class LazyWeight(torch.Tensor):
    """A placeholder that models may ask for dtype, device and shape. Any other use fetches the weight.

    Models look at weights of their submodules to choose a dtype or device, far more often than they compute on them.
    """

    _fetch: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, bare: torch.Tensor, fetch: Callable[[], torch.Tensor]) -> "LazyWeight":
        """``bare``, a placeholder, as a weight that ``fetch`` reads."""
        absent = bare.detach().as_subclass(cls)
        absent._fetch = fetch
        return absent

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LOOKS:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if func.__name__.endswith("_") and not func.__name__.endswith("__"):
            raise UnplaceableModule(
                f"the model changes its weights in place ({func.__name__}), but they are read anew from flash for each "
                "token; load it with transformers instead"
            )
        args, kwargs = tree_map_only(cls, lambda absent: absent._fetch(), (tuple(args), kwargs or {}))
        return func(*args, **kwargs)
