"""How fast a placement can be: bytes over speeds, nothing else (pure).

A token cannot be faster than its weights come out of memory, nor than what is not in memory comes off the drive; the
two go on at once, so the slower decides. Arithmetic is not counted: at one token at a time it hides behind the memory,
in a long prompt it does not, so the time to the first token is a lower bound.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple


class ExpertLayer(NamedTuple):
    """One layer's experts: how many there are, how many a token uses, bytes of all of them."""

    experts: int
    per_token: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """What a model asks of memory and drive. Bytes; ``expert_share`` is the fraction of expert bytes that is cached."""

    dense_touched: int
    dense_streamed: int
    layers: tuple[ExpertLayer, ...]
    expert_share: float


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes per second."""

    flash: float
    memory: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """``hit_ratio`` is that of experts; in a model without any, of dense bytes."""

    tokens_per_second: float
    time_to_first_token_s: float
    flash_bytes_per_token: int
    memory_bytes_per_token: int
    hit_ratio: float
    limited_by: Literal["flash", "memory"]


def distinct_experts(experts: int, per_token: int, tokens: int) -> float:
    """How many different experts ``tokens`` tokens use, if each chooses at random."""
    return experts * (1 - (1 - per_token / experts) ** tokens) if experts else 0.0


def expert_bytes(layers: Iterable[ExpertLayer], tokens: int) -> float:
    """Bytes of all experts that ``tokens`` tokens going through together use."""
    return sum(
        layer.total_bytes * distinct_experts(layer.experts, layer.per_token, tokens) / layer.experts
        for layer in layers
        if layer.experts
    )


def predict(load: Load, speeds: Speeds, *, prompt_tokens: int) -> Prediction:
    """Decoding with the cache warm, and a prompt that finds it empty.

    A random cache hits with the fraction that it holds; a real one does better the more the routing repeats itself.
    """
    used = expert_bytes(load.layers, 1)
    touched = load.dense_touched + used
    missed = load.dense_streamed + (1 - load.expert_share) * used
    by_flash, by_memory = missed / speeds.flash, touched / speeds.memory
    prompt_used = expert_bytes(load.layers, prompt_tokens)
    first = max(
        (load.dense_streamed + prompt_used) / speeds.flash,
        (load.dense_touched + prompt_used) / speeds.memory,
    )
    slowest = max(by_flash, by_memory)
    dense_share = 1 - load.dense_streamed / load.dense_touched if load.dense_touched else 1.0
    return Prediction(
        tokens_per_second=1 / slowest if slowest else 0.0,
        time_to_first_token_s=first,
        flash_bytes_per_token=round(missed),
        memory_bytes_per_token=round(touched),
        hit_ratio=load.expert_share if load.layers else dense_share,
        limited_by="flash" if by_flash > by_memory else "memory",
    )
