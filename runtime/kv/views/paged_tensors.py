"""Keys and values of a paged layer as transformers' modules get them: tensors without numbers.

Our attention function takes the pages; anything else that is done with them gets a copy of all numbers.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map_only

from ....kernels.weights.metadata_ops import LOOKS

if TYPE_CHECKING:
    from ..cache.layer import Visible

Expand = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""What makes keys and values of what is cached, token by token (multi-head latent attention)."""


class PagedStates(torch.Tensor):
    """The keys (``plane`` 0) or values (1) of what is ``visible``, [B, H, T, D]; after ``expansion``, if any."""

    visible: "Visible"
    plane: int
    expansion: Expand | None

    @staticmethod
    def of(visible: "Visible", plane: int, like: torch.Tensor, expansion: Expand | None = None) -> "PagedStates":
        """``like`` [B, H, n, D] has the same heads and dimensions."""
        shape = (*like.shape[:2], visible.length, like.shape[3])
        made: PagedStates = torch.Tensor._make_wrapper_subclass(
            PagedStates, shape, dtype=like.dtype, device=like.device
        )
        made.visible, made.plane, made.expansion = visible, plane, expansion
        return made

    def gathered(self) -> torch.Tensor:
        """All numbers, as a new tensor."""
        found = self.visible.gathered(self.expansion)[self.plane]
        assert found.shape == self.shape
        return found

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func not in LOOKS:
                args, kwargs = tree_map_only(cls, cls.gathered, (tuple(args), kwargs))
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise NotImplementedError(f"{func} was not expected to see paged keys or values")


def expanding(original: Expand) -> Expand:
    """A module's ``expand_kv`` that leaves what is paged where it is, for attention to expand piece by piece."""

    def expand_kv(latents: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not (isinstance(latents, PagedStates) and isinstance(rotated, PagedStates)):
            return original(latents, rotated)
        token = [
            torch.zeros((1, s.shape[1], 1, s.shape[3]), dtype=s.dtype, device=s.device) for s in (latents, rotated)
        ]
        keys, values = (x.expand(latents.shape[0], -1, -1, -1) for x in original(*token))
        visible = latents.visible
        return PagedStates.of(visible, 0, keys, original), PagedStates.of(visible, 1, values, original)

    return expand_kv
