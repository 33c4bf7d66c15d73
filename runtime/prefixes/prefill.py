"""Computes prompts block by block, or several blocks together where that gives the same bits. A block's keys and values
depend on nothing behind it, so they can be stored for other prompts."""

import time
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from .beginnings import begin_with, beginning, copy_of
from .calls import compute_part
from .grouping import divide_into_calls, may_compute_together
from .layered import Part, compute_layered, has_layers_in_order

if TYPE_CHECKING:
    from .prefix import Prefixes

restored: ContextVar[int] = ContextVar("restored", default=0)
"""The number of leading tokens that were restored of the latest prompt of this context: of this strand."""
at_once: ContextVar[bool] = ContextVar("at_once", default=False)
"""Whether the prompts of this context are stored when they come the first time."""


def prefill(model: Any, token_ids: Sequence[int], cache: Cache, *, block: int) -> torch.Tensor:
    """Compute the ``token_ids`` that ``cache`` lacks, in forward calls that end where blocks do; the logits of the last
    token, [vocabulary]."""
    ids = torch.tensor([list(token_ids)], device=model.device)
    logits = torch.empty(0)
    with torch.no_grad():
        for end in divide_into_calls(cache.get_seq_length(), len(token_ids), block=block, together=False):
            logits = compute_part(model, ids, cache, end)[0, -1]
    return logits


def prefill_with_prefixes(
    prefixes: "Prefixes", model: Any, input_ids: torch.Tensor, cache: DynamicCache, last: Part
) -> Any:
    """Prefill the prompt ``input_ids`` [1, N] into the fresh ``cache``: restore what ``prefixes`` have of it, compute
    other full blocks, then call ``last``, transformers' own prefill of the rest, and return its result. The prompt is
    offered to ``prefixes``. While the model cannot be described, or if it cannot go on behind a part of a prompt,
    ``last`` computes all."""
    ids: list[int] = input_ids[0].tolist()
    with prefixes.hold_names() as names:
        common = beginning.get()
        if names is None or names.is_beyond(ids) or not prefixes.can_go_on(model, ids):
            if common is not None:
                common.done()
            return last(cache)
        if common is not None and common.has is not None and common.has.root == names.root:
            begin_with(cache, common.has.cache)
            restored.set(cache.get_seq_length())
            prefixes.origins.begin(cache, names.root, ids[: cache.get_seq_length()])
        else:
            restored.set(prefixes.restore(ids, cache))
        together = may_compute_together(model, ids, cache, block=prefixes.block, kind=names.kind)
        done = cache.get_seq_length()
        began = time.perf_counter()
        stop = prefixes.find_stop(ids, first=at_once.get()) if prefixes.with_state else 0
        given = () if common is None else common.stops
        for end in sorted({stop, *given}):
            if end > cache.get_seq_length():
                whole = partial(compute_part, model, input_ids, end=end)
                ends = divide_into_calls(cache.get_seq_length(), end, block=prefixes.block, together=False)
                _compute_parts(model, input_ids, cache, ends, whole)
            if end and end == stop:
                prefixes.offer(ids, cache, first=at_once.get())
            if common is not None and end in given and end == cache.get_seq_length():
                common.give(end, copy_of(cache), names.root)
        if common is not None:
            common.done()
        ends = divide_into_calls(cache.get_seq_length(), len(ids), block=prefixes.block, together=together)
        out = _compute_parts(model, input_ids, cache, ends, last)
        prefixes.note_prefill(len(ids) - done, time.perf_counter() - began)
    if not stop:
        prefixes.offer(ids, cache, first=at_once.get())
    return out


def _compute_parts(model: Any, ids: torch.Tensor, cache: DynamicCache, ends: Sequence[int], last: Part) -> Any:
    """Compute the parts of the prompt ``ids`` [1, N] that end behind each of ``ends``: the last one by ``last``, whose
    result is returned."""

    def part(end: int) -> Part:
        return lambda seen: compute_part(model, ids, seen, end)

    parts = [*map(part, ends[:-1]), last]
    with torch.no_grad():
        if len(parts) > 1 and hasattr(model, "penstock") and has_layers_in_order(cache):
            return compute_layered(model, model.penstock.forwards, cache, ends, parts)[-1]
        return [each(cache) for each in parts][-1]
