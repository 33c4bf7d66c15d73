"""Tries whether a model goes on from the states in its cache when several tokens come.

A stored prompt is computed, and gone on with, in several forward calls. With recurrent layers that gives what one call
gives only if the model takes up the states of the call before. Some models do so for a single token alone: with more,
they begin anew, without an error. Others keep states in their modules, where they belong to whatever was computed last.

A trial tells: one state after the other is made NaN, each in a sequence of its own. Where it reaches the tokens that
follow, their numbers are NaN. Which model it is does not matter.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin

from ...kernels.products.row_parts import BIT_TRIALS
from .calls import compute_part

BEFORE, AFTER = 8, 2
"""Tokens of the two calls of a trial. A convolution's state reaches few tokens, and the last one is looked at."""


def goes_on_from_states(model: Any, token_ids: Sequence[int], *, kind: str) -> bool:
    """Whether ``model`` takes up all of its state from a cache, whatever the number of tokens that come. Each ``kind``
    is tried once, with ``token_ids``."""
    key = f"several tokens go on from states, {kind}"
    if key not in BIT_TRIALS:
        wanted = BEFORE + AFTER
        ids = torch.tensor([([*token_ids] * wanted)[:wanted]], device=model.device)
        BIT_TRIALS[key] = _all_reach(model, ids)
    return BIT_TRIALS[key]


def _all_reach(model: Any, ids: torch.Tensor) -> bool:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        compute_part(model, ids, cache, BEFORE)
        if not _holds_states(cache):
            return False
        count = len([*_states(cache)])
        cache.reorder_cache(torch.zeros(count, dtype=torch.long, device=ids.device))
        for number, state in enumerate(_states(cache)):
            state[number] = torch.nan
        logits = compute_part(model, ids.expand(count, -1), cache, ids.shape[1])
    return bool(logits.isnan().flatten(1).any(dim=1).all())


def is_recurrent(cache: Cache) -> bool:
    """Whether ``cache`` has layers for recurrent states."""
    return bool(_recurrent_layers(cache))


def _recurrent_layers(cache: Cache) -> list[LinearAttentionCacheLayerMixin]:
    return [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]


def _holds_states(cache: Cache) -> bool:
    """Whether each recurrent layer has given its states to ``cache``, and there is one."""
    return is_recurrent(cache) and all(all(layer.has_previous_state.values()) for layer in _recurrent_layers(cache))


def _states(cache: Cache) -> Iterator[torch.Tensor]:
    for layer in _recurrent_layers(cache):
        for held in (layer.conv_states, layer.recurrent_states):
            yield from (state for state in held.values() if state is not None)
