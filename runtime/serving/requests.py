"""A request for an answer, and what comes back: tokens, then the reason why there are no more."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...tiering.serving.admission import Priority

Finish = Literal["stop", "length"]
Pooling = Literal["mean", "last", "first"]
"""Which hidden states an embedding is made of: the mean of all tokens, that of the last, or of the first."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. The default is greedy.

    The chance of a token depends on ``seed`` and its position alone, so an answer can be repeated.
    """

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """0 is all."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    """Taken from the logit of each token that the answer has."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for each time that the answer has it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, with what is added to their logits."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue. ``max_tokens`` are the most new tokens."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    top_logprobs: int | None = None
    """How many of the likeliest tokens are told with each token, with their log-probabilities; None: none, and not that
    of the token itself."""
    until: Callable[[int], bool] | None = None
    """Is called with each new token. The answer ends behind the one for which it returns True."""
    processors: Sequence[Any] = ()
    """LogitsProcessors of transformers, called before a token is chosen: a grammar, for example."""
    client: str = ""
    priority: Priority = "interactive"
    timeout: float | None = None
    """Seconds after which the answer is no longer wanted."""
    keep: bool = False
    """The prompt is stored when it comes the first time, where prompts are stored: the next one begins with it."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text whose embedding is wanted: the last hidden states of ``prompt``, pooled into one vector of length 1.
    ``timeout`` is as for Request."""

    prompt: Sequence[int]
    pooling: Pooling = "mean"
    client: str = ""
    priority: Priority = "interactive"
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A new token. ``finish`` says why it is the last one."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None
    cached: int = 0
    """Tokens of the prompt that were restored from flash instead of computed."""
