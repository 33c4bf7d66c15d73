"""Choosing tokens: the logits processors of a request. Its last one leaves a single token."""

import torch
from transformers.generation import logits_process as processes

from .requests import Request, Sampling


def processors_of(request: Request, device: torch.device, choice: "Choice") -> processes.LogitsProcessorList:
    """Return what the logits of ``request`` go through, up to ``choice``."""
    sampling, found = request.sampling, processes.LogitsProcessorList()
    found.extend(request.processors)
    if sampling.logit_bias:
        found.append(_Bias(sampling, device))
    if sampling.presence_penalty or sampling.frequency_penalty:
        found.append(Penalties(sampling.presence_penalty, sampling.frequency_penalty, len(request.prompt)))
    if sampling.repetition_penalty != 1.0:
        found.append(processes.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    found.append(choice)
    return found


class Choice(processes.LogitsProcessor):  # type: ignore[misc]
    """Chooses the next token, and remembers how likely it was."""

    def __init__(self, request: Request) -> None:
        self._sampling, self._tops, self._prompt = request.sampling, request.top_logprobs, len(request.prompt)
        self._warpers = _warpers(request.sampling)
        self.logprob: float | None = None
        self.top: tuple[tuple[int, float], ...] = ()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [1, vocabulary] with nothing but the chosen token."""
        token = self._choose(input_ids, scores)
        if self._tops is not None:
            likely = scores.log_softmax(-1)
            self.logprob = float(likely[0, token])
            values, ids = likely[0].topk(self._tops)
            self.top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, token] = 0
        return chosen

    def _choose(self, input_ids: torch.Tensor, scores: torch.Tensor) -> int:
        if self._sampling.temperature == 0:
            return int(scores.argmax(-1))
        for warp in self._warpers:
            scores = warp(input_ids, scores)
        place = input_ids.shape[1] - self._prompt
        chance = torch.Generator().manual_seed(_mix(self._sampling.seed, place))
        return int(torch.multinomial(scores.softmax(-1)[0].cpu(), 1, generator=chance))


def _mix(seed: int, place: int) -> int:
    """A seed for the token at ``place`` (splitmix64, "Fast Splittable Pseudorandom Number Generators")."""
    mixed = (seed * 0x9E3779B97F4A7C15 + place * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & (2**64 - 1)
    return (mixed ^ mixed >> 31) >> 1


def _warpers(sampling: Sampling) -> list[processes.LogitsProcessor]:
    found: list[processes.LogitsProcessor] = []
    if sampling.temperature not in (0, 1):
        found.append(processes.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        found.append(processes.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(processes.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        found.append(processes.MinPLogitsWarper(sampling.min_p))
    return found


class _Bias(processes.LogitsProcessor):  # type: ignore[misc]
    """Adds to the logits of some tokens."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        ids, amounts = zip(*sampling.logit_bias, strict=True)
        self._ids = torch.tensor(ids, device=device)
        self._amounts = torch.tensor(amounts, dtype=torch.float32, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_add(1, self._ids, self._amounts.to(scores.dtype)[None])


class Penalties(processes.LogitsProcessor):  # type: ignore[misc]
    """Takes from the logits of tokens that the answer has, behind ``prompt`` tokens."""

    def __init__(self, presence: float, frequency: float, prompt: int) -> None:
        """``presence`` is taken once, ``frequency`` for each time that the answer has the token."""
        self._presence, self._frequency, self._prompt = presence, frequency, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [sequences, vocabulary] of the sequences ``input_ids``."""
        answer = input_ids[:, self._prompt :]
        counts = torch.zeros_like(scores).scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        return scores - self._presence * (counts > 0).to(scores.dtype) - self._frequency * counts
