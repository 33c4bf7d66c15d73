"""Tells forwards and prompts whose keys and values depend on token ids alone from all others."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

_PLAIN = {"input_ids", "attention_mask", "past_key_values", "use_cache", "logits_to_keep", "position_ids",
          "cache_position", "return_dict"}  # fmt: skip
"""Arguments of a forward that do not change its KV, if the mask and the positions are those that transformers makes."""


def is_plain(input_ids: torch.Tensor, kwargs: Mapping[str, Any], flags: Collection[str] = ()) -> bool:
    """Whether the KV of a prompt, generated from with ``kwargs``, depends on its token ids alone: one sequence without
    padding, and a cache of transformers' default kind that holds nothing. ``flags`` are arguments that may be False."""
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, DynamicCache) or cache.get_seq_length():
        return False
    return is_plain_forward({**kwargs, "input_ids": input_ids}, 0, flags)


def is_plain_forward(kwargs: Mapping[str, Any], before: int, flags: Collection[str] = ()) -> bool:
    """Whether the KV that a forward with ``kwargs`` adds behind ``before`` tokens depends on token ids alone. ``flags``
    as for ``is_plain``."""
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.shape[0] != 1:
        return False
    for name in kwargs.keys() - _PLAIN:
        if kwargs[name] is not None and not (kwargs[name] is False and name in flags):
            return False
    count = ids.shape[1]
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 2 and bool((mask == 1).all())):
        return False
    places = torch.arange(before, before + count)
    given = [kwargs[name] for name in ("position_ids", "cache_position") if kwargs.get(name) is not None]
    return all(at.numel() % count == 0 and bool((at.reshape(-1, count).cpu() == places).all()) for at in given)


def find_flags(model: nn.Module) -> frozenset[str]:
    """The arguments of the forward of ``model`` that are False or None unless they are given."""
    parameters = inspect.signature(model.forward).parameters.values()
    return frozenset(each.name for each in parameters if each.default is None or each.default is False)
