"""Computes prompts block by block: what a block gives depends on nothing behind it, so it can be kept for others."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicCache

if TYPE_CHECKING:
    from .prefix import Prefixes

_PLAIN = {"attention_mask", "past_key_values", "use_cache", "logits_to_keep", "position_ids", "cache_position"}
"""What a prompt's forward may be given without another KV coming out of it, if the first and the last two are as
transformers makes them."""


def prefill(model: Any, token_ids: Sequence[int], cache: Cache, *, block: int) -> torch.Tensor:
    """Compute what ``cache`` lacks of ``token_ids``, in forward calls that end where blocks do; the logits of the last
    token, [vocabulary]."""
    done = cache.get_seq_length()
    ids = torch.tensor([list(token_ids)])
    logits = torch.empty(0)
    with torch.no_grad():
        while done < len(token_ids):
            end = min(len(token_ids), done - done % block + block)
            logits = model(ids[:, done:end], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
            done = end
    return logits


def with_prefixes(
    prefixes: "Prefixes", model: Any, input_ids: torch.Tensor, cache: DynamicCache, last: Callable[[], Any]
) -> Any:
    """What ``last`` gives, transformers' own prefill of all of ``input_ids`` [1, N] that the fresh ``cache`` has not
    got: after as much as possible of it was restored, and the other full blocks computed. The prompt is offered."""
    ids: list[int] = input_ids[0].tolist()
    restored = prefixes.restore(ids, cache)
    began = time.perf_counter()
    stop = prefixes.stop(ids) if prefixes.with_state else 0
    if stop:
        prefill(model, ids[:stop], cache, block=prefixes.block)
        prefixes.offer(ids, cache)
    prefill(model, ids[: prefixes.boundary(len(ids))], cache, block=prefixes.block)
    out = last()
    prefixes.prefilled(len(ids) - restored, time.perf_counter() - began)
    if not stop:
        prefixes.offer(ids, cache)
    return out


def is_plain(input_ids: torch.Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the KV of a prompt, generated from with ``kwargs``, depends on its token ids alone: one sequence without
    padding, and a cache of transformers' default kind that holds nothing."""
    others = (kwargs[name] for name in kwargs.keys() - _PLAIN)
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or any(x is not None and x is not False for x in others):
        return False
    cache, mask, count = kwargs.get("past_key_values"), kwargs.get("attention_mask"), input_ids.shape[1]
    if not isinstance(cache, DynamicCache) or cache.get_seq_length() or not (mask is None or bool((mask == 1).all())):
        return False
    places = (kwargs.get(name) for name in ("position_ids", "cache_position"))
    return all(at is None or torch.equal(at.flatten(), torch.arange(count)) for at in places)
