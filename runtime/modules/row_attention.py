"""Attention of one token at a time, through transformers' attention interface, with the bits of its sdpa function."""

import functools
import inspect
import re
import sys
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...kernels.modules.attention_row import attend_row
from ..kv.attention.eager_check import find_sdpa

IMPLEMENTATION = "penstock-sdpa"
"""As ``attn_implementation``, for models whose own is sdpa."""

_REPLACED = "sdpa"
_ASKS = re.compile(r"""["']sdpa["']|scaled_dot_product_attention""")
_CHANGES = ("position_bias", "cache", "softcap", "output_attentions")
"""Options with which only transformers' function computes."""


def use_row_attention(model: nn.Module) -> None:
    """Have ``model`` compute attention of single tokens by our kernel where its own implementation is sdpa. Models
    whose code asks for that name, or calls torch's function, keep it."""
    with_config = [module for module in model.modules() if hasattr(module, "config")]
    if any(_asks_for_name(type(module).__module__) for module in with_config):
        return
    for module in with_config:
        config: Any = module.config
        if getattr(config, "_attn_implementation", None) == _REPLACED:
            config._attn_implementation = {"": IMPLEMENTATION}  # not those of the configurations inside


@functools.cache
def _asks_for_name(file: str) -> bool:
    """Whether the module ``file`` of a model's code names the implementation, or torch's function, itself, or cannot be
    read."""
    try:
        return _ASKS.search(inspect.getsource(sys.modules[file])) is not None
    except (KeyError, OSError, TypeError):
        return True


def row_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of ``query`` [B, Hq, R, D] to ``key`` and ``value`` [B, H, T, D], as transformers' sdpa function
    returns it: [B, R, Hq, D] and no weights."""
    own = find_sdpa(module)
    if attention_mask is None and query.shape[2] == 1 and not dropout and own is sdpa_attention_forward:
        groups = query.shape[1] // key.shape[1]
        as_told = groups == getattr(module, "num_key_value_groups", 1)
        if as_told and not any(options.get(name) for name in _CHANGES):
            out = attend_row(query, key, value, scaling)
            if out is not None:
                return out, None
    key, value = _together(key), _together(value)
    return own(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)


def _together(numbers: torch.Tensor) -> torch.Tensor:
    """``numbers`` [B, H, T, D] of a cache that grows, where heads may lie apart, as torch would have concatenated
    them."""
    apart = type(numbers) is torch.Tensor and numbers.stride(2) == numbers.shape[3]
    return numbers.contiguous() if apart else numbers


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, row_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, ALL_MASK_ATTENTION_FUNCTIONS[_REPLACED])
