"""The forward calls that compute parts of a prompt: with the arguments that ``generate`` gives."""

import inspect
from typing import Any

import torch
from transformers.cache_utils import Cache


def compute_part(model: Any, ids: torch.Tensor, cache: Cache, end: int) -> torch.Tensor:
    """Compute what ``cache`` lacks of the first ``end`` tokens of the prompts ``ids`` [sequences, N]; the logits of
    the last, [sequences, 1, vocabulary]."""
    done = cache.get_seq_length()
    places = _find_positions(model, ids)
    given = {} if places is None else {"position_ids": places[..., done:end]}
    out = model(ids[:, done:end], past_key_values=cache, use_cache=True, logits_to_keep=1, **given)
    logits: torch.Tensor = out.logits
    return logits


def _find_positions(model: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """The positions of whole prompts ``ids``, as ``generate`` makes them; None where the model takes none. A model need
    not know by itself how many tokens a cache holds: some count from 0 in every call."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return None
    places: torch.Tensor = model._prepare_position_ids_for_generation(ids, {})
    return places
