"""Measure what a weight format does to a model: perplexity of a text, and the change of the next tokens' probabilities.

The original runs first, and its logits are kept on flash (runtime/evaluation/logits.py). The models that are tested are
compared with them. Each model has the whole memory budget to itself, and the original runs once for any number of
others. Two models at a time, window by window, would need no file. But each would have half of the budget, which is too
little for many models to run at all, and the original would run again for each format.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...tiering.errors import EvaluationError
from ...tiering.units import MiB
from .logits import KeptLogits, in_pieces

PIECE = 16 * MiB
"""Most bytes of logits at a time: they come on top of the memory for weights."""
BLOCK = 2 * MiB
"""Most bytes of one float64 matrix of probabilities; about five of them are there at a time."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over ``tokens`` predicted tokens. ``perplexity`` is exp of the mean negative log-likelihood;
    ``kl_divergence`` is KL(original || tested) in nats; ``top1_agreement`` is the share of positions where the most
    probable token is the original's (of equal ones the first, as greedy decoding takes it)."""

    tokens: int
    perplexity: float
    kl_divergence: float
    top1_agreement: float


class QualityMeter:
    """Adds up the measures of a text, in float64. Tokens without logits of the original count as equal to it."""

    def __init__(self) -> None:
        self._tokens = 0
        self._nll = self._divergence = self._agreed = 0.0

    def add(self, logits: torch.Tensor, targets: torch.Tensor, original: torch.Tensor | None = None) -> None:
        """Count ``targets`` int64 [r] as predicted by ``logits`` [r, vocabulary], of any dtype; ``original`` are the
        original's. Raises EvaluationError for logits that are no numbers."""
        tested = logits.double().log_softmax(-1)
        nll = -tested.gather(1, targets[:, None])
        if nll.isnan().any():
            raise EvaluationError(
                f"the model gives no probabilities near token {self._tokens + 1} (its logits are infinite or no "
                "numbers); penstock verify tells whether its weights are damaged, else they overflow in this format"
            )
        self._tokens += len(targets)
        self._nll += nll.sum().item()
        if original is None:
            self._agreed += len(targets)
            return
        true = original.double().log_softmax(-1)
        share = true.exp()
        # 0 log 0 = 0; rounding can take a sum that is zero or more below zero.
        terms = torch.where(share > 0, share * (true - tested), 0.0)
        self._divergence += terms.sum(-1).clamp(min=0).sum().item()
        self._agreed += (original.argmax(-1) == logits.argmax(-1)).sum().item()

    def quality(self) -> Quality:
        """The means so far, of one token at least."""
        n = self._tokens
        perplexity = torch.tensor(self._nll / n, dtype=torch.float64).exp().item()  # inf where math.exp would raise
        return Quality(n, perplexity, self._divergence / n, self._agreed / n)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The quality of a model, and the ``seconds`` that it computed."""

    quality: Quality
    seconds: float


def windows(ids: Sequence[int], first: Sequence[int], size: int) -> list[list[int]]:
    """``ids`` in windows of at most ``size`` tokens, which do not overlap; each begins with the tokens ``first``. The
    first token of a window is not predicted; a last window in which nothing would be is left out. Pure."""
    step = size - len(first)
    found = [[*first, *ids[start : start + step]] for start in range(0, len(ids), step)]
    return [window for window in found if len(window) > 1]


def predicted(windows: Sequence[Sequence[int]]) -> int:
    """How many tokens of ``windows`` are predicted."""
    return sum(len(window) - 1 for window in windows)


def evaluate(
    model: Any,
    windows: Sequence[Sequence[int]],
    *,
    keep: KeptLogits | None = None,
    against: KeptLogits | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Evaluation:
    """Run ``windows``, one at least, through ``model``. Its logits are kept in ``keep``; ``against`` has the original's
    of the same windows. ``advance`` is told how many tokens are predicted. Raises EvaluationError and FlashFull."""
    vocabulary = model.config.get_text_config().vocab_size
    piece = max(1, PIECE // (vocabulary * model.dtype.itemsize))
    block = max(1, BLOCK // (vocabulary * torch.float64.itemsize))
    measure, seconds = QualityMeter(), 0.0
    if against is not None:
        against.rewind()
    targets = torch.tensor([token for window in windows for token in window[1:]])
    done = 0

    def take(logits: torch.Tensor) -> None:
        nonlocal done, seconds
        logits = logits.cpu()  # waits for them
        began = time.perf_counter()
        for part in torch.split(logits, block):
            original = against.read(len(part)) if against is not None else None
            measure.add(part, targets[done : done + len(part)], original)
            done += len(part)
        if keep is not None:
            keep.append(logits)
        advance(len(logits))
        seconds -= time.perf_counter() - began

    began = time.perf_counter()
    with torch.no_grad():
        for window in windows:
            in_pieces(model, torch.tensor([window], device=model.device), piece, take)
    seconds += time.perf_counter() - began
    return Evaluation(measure.quality(), seconds)
