"""Sorts torch's functions by what they need of a weight: its metadata, its numbers, some rows of it, or to change it.

Functions are those that ``__torch_function__`` receives.
"""

from typing import Any

import torch
from torch.nn import functional

from ...kernels.weights.metadata_ops import LOOKS

_Tensor = torch.Tensor

ANSWERED = LOOKS | {
    *(getattr(_Tensor, name).__get__ for name in ("is_leaf", "grad", "grad_fn", "nbytes", "_version")),
    *(getattr(_Tensor, name).__get__ for name in ("is_quantized", "is_nested", "is_sparse_csr", "is_mps", "is_xpu")),
    *(getattr(_Tensor, name) for name in ("stride", "storage_offset", "is_contiguous", "nelement", "ndimension")),
    *(getattr(_Tensor, name) for name in ("is_complex", "is_signed", "is_inference", "get_device", "__len__")),
    *(torch.is_floating_point, torch.is_complex, torch.numel, torch.is_inference),
}
"""What a weight answers without its numbers."""

REFUSED = {
    *(getattr(_Tensor, name) for name in ("data_ptr", "untyped_storage", "storage", "_typed_storage")),
    *(getattr(_Tensor, name) for name in ("register_hook", "register_post_accumulate_grad_hook", "retain_grad")),
    *(_Tensor.__dlpack__, _Tensor.__cuda_array_interface__.__get__),
}
"""Functions that give away memory that stays, or ask for gradients. A weight has neither."""


def written(func: torch._ops.OpOverload, args: Any, kwargs: Any) -> list[Any]:
    """Those of the arguments that the operator ``func`` changes, as its schema tells."""
    writes = [argument for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write]
    places = {argument.name: place for place, argument in enumerate(func._schema.arguments)}
    found = [kwargs.get(argument.name) for argument in writes]
    return [*found, *(args[places[each.name]] for each in writes if places[each.name] < len(args))]


def rows_of(func: Any, args: Any, weight: torch.Tensor) -> torch.Tensor | None:
    """The rows of ``weight`` that ``func`` uses, where these are told by its arguments; None for all."""
    if func is functional.embedding and len(args) > 1 and args[1] is weight:
        return _integers(args[0])
    if func in (torch.index_select, _Tensor.index_select) and args[0] is weight and args[1:2] == (0,) and len(args) > 2:
        return _integers(args[2])
    if func is _Tensor.__getitem__ and args[0] is weight:
        index = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
        if isinstance(index, int | slice) and not isinstance(index, bool):
            return torch.arange(len(weight))[index].reshape(-1)
        rows = _integers(index)
        return rows if rows is None else rows % len(weight)  # negative ones count from the end
    return None


def _integers(index: Any) -> torch.Tensor | None:
    is_index = type(index) is torch.Tensor and index.dtype in (torch.int64, torch.int32)
    return index.reshape(-1) if is_index else None
