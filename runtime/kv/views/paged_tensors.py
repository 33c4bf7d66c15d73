"""Keys and values of a paged layer as transformers' modules get them: tensors without storage.

Our attention function takes the pages from them. Any other operation gets a gathered copy, which nobody changes: that
would be lost.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from ....kernels.weights.changing_ops import changed
from ....kernels.weights.metadata_ops import ARRAYS, LOOKS
from ....tiering.errors import PenstockError
from .expansions import ExpansionForm
from .visible import Expand, Visible


class PagedTensor(torch.Tensor):
    """The keys (``side`` 0) or values (1) of the ``visible`` tokens, [B, H, T, D]; after ``expansion``, if any."""

    visible: Visible
    side: int
    expansion: Expand | None

    @staticmethod
    def of(visible: Visible, side: int, like: torch.Tensor, expansion: Expand | None = None) -> "PagedTensor":
        """Of batch, heads, dimensions, dtype and device of ``like`` [B, H, n, D]."""
        shape = (*like.shape[:2], visible.length, like.shape[3])
        made: PagedTensor = torch.Tensor._make_wrapper_subclass(
            PagedTensor, shape, dtype=like.dtype, device=like.device
        )
        made.visible, made.side, made.expansion = visible, side, expansion
        return made

    def materialize(self) -> torch.Tensor:
        """A copy with storage, where the model computes. Raises PenstockError once the cache has other tokens."""
        found = self.visible.gather(self.expansion)[self.side]
        if found.shape != self.shape:
            raise PenstockError(
                "keys or values of a KV cache were used after the cache had changed; copy them while its layer runs"
            )
        return found

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        _check_unchanged(cls, func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if func not in LOOKS:
                args, kwargs = tree_map_only(cls, cls.materialize, (tuple(args), kwargs))
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise NotImplementedError(f"{func} was not expected to see paged keys or values")


class GatheredTensor(torch.Tensor):
    """A copy of keys or values that lie in pages, or a view on one. It is not changed in place."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        _check_unchanged(cls, func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if func in LOOKS:
                return func(*args, **kwargs)
            gathered = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if type(each) is cls}
            out = func(*args, **kwargs)

            def outside(tensor: torch.Tensor) -> torch.Tensor:
                is_view = tensor.untyped_storage().data_ptr() in gathered
                return tensor.as_subclass(cls if is_view else torch.Tensor)

            if func in ARRAYS:
                out.setflags(write=False)
            return tree_map_only(torch.Tensor, outside, out)


def _check_unchanged(kind: type[torch.Tensor], func: Callable[..., Any], args: Any, kwargs: Any) -> None:
    if any(isinstance(each, kind) for each in tree_leaves(changed(func, args, kwargs))):
        raise PenstockError(
            "keys and values of this KV cache lie in pages, and what is written to a copy of them would be lost; "
            'change a clone(), or take [kv] host = "auto", which keeps caches of transformers\' own kind'
        )


def defer_expansion(original: Expand) -> Expand:
    """An ``expand_kv`` for a module that has ``original``: it leaves paged tensors in pages, and attention expands
    them piece by piece."""

    form = ExpansionForm(original)

    def expand_kv(latents: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not (isinstance(latents, PagedTensor) and isinstance(rotated, PagedTensor)):
            return original(latents, rotated)
        keys, values = (x.expand(latents.shape[0], -1, -1, -1) for x in form.like(latents, rotated))
        visible = latents.visible
        return PagedTensor.of(visible, 0, keys, original), PagedTensor.of(visible, 1, values, original)

    return expand_kv
