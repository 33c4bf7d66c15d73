"""A causal mask without storage: paged attention does not need its elements, any other operation gets them.

transformers asks for masks by the configuration of a decoder. In a forward without a paged cache it gets its own.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from transformers.masking_utils import eager_mask, sdpa_mask

from ....kernels.weights.metadata_ops import LOOKS

_paging: ContextVar[bool] = ContextVar("penstock_paging", default=False)


@contextlib.contextmanager
def masks_for_pages() -> Iterator[None]:
    """Inside, masks are for attention on pages."""
    token = _paging.set(True)
    try:
        yield
    finally:
        _paging.reset(token)


class CausalMask(torch.Tensor):
    """The additive mask [B, 1, R, T] under which each of the last R tokens sees all tokens up to itself."""

    @staticmethod
    def of(batch: int, rows: int, tokens: int, dtype: torch.dtype, device: torch.device | None = None) -> "CausalMask":
        """The mask of the last ``rows`` of ``tokens`` tokens, for ``batch`` sequences, of ``dtype`` on ``device``."""
        shape = (batch, 1, rows, tokens)
        made: CausalMask = torch.Tensor._make_wrapper_subclass(CausalMask, shape, dtype=dtype, device=device)
        return made

    def materialize(self) -> torch.Tensor:
        """The mask with storage."""
        with torch._C.DisableTorchFunctionSubclass():
            return make_causal_mask(self.shape[2], self.shape[3], self.dtype, self.device).expand(
                self.shape[0], -1, -1, -1
            )

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in LOOKS:
            args, kwargs = tree_map_only(cls, cls.materialize, (tuple(args), kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise NotImplementedError(f"{func} was not expected to see a mask that is not written out")


def make_causal_mask(rows: int, tokens: int, dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
    """[1, 1, rows, tokens]: 0 where one of the last ``rows`` tokens sees another, the least number elsewhere."""
    sees = torch.ones(rows, tokens, dtype=torch.bool, device=device).tril(tokens - rows)
    return torch.where(sees, torch.zeros((), dtype=dtype, device=device), torch.finfo(dtype).min)[None, None]


def make_paged_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """transformers' eager mask; a CausalMask if it is a plain causal one. Outside of ``masks_for_pages`` the mask of
    transformers' sdpa attention."""
    return _make_paged(*args, **kwargs) if _paging.get() else sdpa_mask(*args, **kwargs)


def make_paged_eager_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """As ``make_paged_mask``, for models whose own attention is eager."""
    return _make_paged(*args, **kwargs) if _paging.get() else eager_mask(*args, **kwargs)


def _make_paged(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    padding = kwargs.get("attention_mask")
    plain = kwargs.get("allow_is_causal_skip", False) and kwargs.get("local_size") is None
    at_the_end = kwargs.get("q_offset", 0) + kwargs["q_length"] == kwargs.get("kv_offset", 0) + kwargs["kv_length"]
    if plain and at_the_end and (padding is None or bool(padding.all())):
        shape = (kwargs["batch_size"], kwargs["q_length"], kwargs["kv_length"])
        return CausalMask.of(*shape, kwargs["dtype"], torch.device(kwargs.get("device", "cpu")))
    made: torch.Tensor | None = eager_mask(*args, **kwargs)
    return made


def make_additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``mask`` as it is added to scores of ``dtype``: a boolean one says which tokens are seen."""
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), torch.finfo(dtype).min)
