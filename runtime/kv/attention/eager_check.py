"""A trial, once for each kind of module: does its eager attention function compute the same as ours?"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ....kernels.kv.blockwise import BlockwiseAttention
from ..views.masks import make_causal_mask
from ..views.softmax import Softmax

Eager = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]

_ROWS, _TOKENS = 3, 11
_known: dict[tuple[Any, ...], bool] = {}


def find_eager(module: nn.Module) -> Eager:
    """The eager attention function of the file that defines ``module``; transformers' sdpa function if it has none."""
    for base in type(module).__mro__:
        found: Eager | None = getattr(sys.modules[base.__module__], "eager_attention_forward", None)
        if found is not None:
            return found
    fallback: Eager = sdpa_attention_forward
    return fallback


def find_sdpa(module: nn.Module) -> Eager:
    """The sdpa function that transformers would call for ``module``: a file may register its own."""
    for base in type(module).__mro__:
        own = getattr(sys.modules[base.__module__], "ALL_ATTENTION_FUNCTIONS", None)
        if own is not None and "sdpa" in own:
            found: Eager = own["sdpa"]
            return found
    fallback: Eager = sdpa_attention_forward
    return fallback


def matches_eager(
    module: nn.Module,
    eager: Eager,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    options: Mapping[str, Any],
) -> bool:
    """Whether ``eager`` computes the same attention as ours, with options of these names, for tensors with the heads
    and dimensions of ``query`` [B, Hq, R, D], ``key`` and ``value`` [B, H, T, D]. Tried once for each kind of
    module."""
    given = sorted(name for name, value in options.items() if value is not None)
    kind = (type(module), eager, query.shape[1], key.shape[1], key.shape[3], value.shape[3], query.dtype, *given)
    if kind not in _known:
        _known[kind] = _try_eager(module, eager, query, key, value, scaling, options)
    return _known[kind]


def _try_eager(
    module: nn.Module,
    eager: Eager,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    options: Mapping[str, Any],
) -> bool:
    chance = torch.Generator().manual_seed(0)

    def numbers(heads: int, tokens: int, dim: int) -> torch.Tensor:
        return torch.randn(1, heads, tokens, dim, generator=chance).to(query.device, query.dtype)

    q = numbers(query.shape[1], _ROWS, query.shape[3]) * 2
    k, v = (numbers(x.shape[1], _TOKENS, x.shape[3]) for x in (key, value))
    mask = make_causal_mask(_ROWS, _TOKENS, query.dtype, query.device)
    try:
        expected = eager(module, q, k, v, mask, scaling=scaling, dropout=0.0, **options)[0]
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return False
    softmax = Softmax.of(scaling, options)
    blockwise = BlockwiseAttention(q[0], scaling, softcap=softmax.softcap, sinks=softmax.sinks)
    for sweep in range(blockwise.first, 3):
        blockwise.add(sweep, k[0], v[0], offset=_TOKENS - _ROWS)
    found = blockwise.finish().transpose(0, 1)[None]
    near = 1e-5 if query.dtype == torch.float32 else 2e-2
    return found.shape == expected.shape and torch.allclose(found.float(), expected.float(), rtol=near, atol=near)
