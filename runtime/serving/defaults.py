"""What a model says of its answers, where a request does not: how tokens are chosen, how many, and which end them."""

from typing import Any

from .requests import Sampling

MOST_TOKENS = 4096
"""New tokens where nobody says how many."""


def ends_of(model: Any) -> frozenset[int]:
    """The tokens that end answers of ``model``."""
    ends = model.generation_config.eos_token_id
    return frozenset(each for each in (ends if isinstance(ends, list) else [ends]) if isinstance(each, int))


def positions_of(model: Any) -> int | None:
    """The most tokens of a sequence; None for models without a bound."""
    found: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found


def room_behind(prompt: int, positions: int | None) -> int:
    """The most new tokens behind a prompt of ``prompt`` tokens, where nobody says how many."""
    return MOST_TOKENS if positions is None else max(1, min(MOST_TOKENS, positions - prompt + 1))


def sampling_of(config: Any, **wanted: Any) -> Sampling:
    """How tokens are chosen. What is None in ``wanted`` is as the generation ``config`` says, else as OpenAI's
    interface does: at a temperature of 1."""
    defaults = {
        name: value
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        if (value := getattr(config, name, None)) is not None
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    return Sampling(**({"temperature": 1.0} | defaults | given))
