"""Guesses for one layer: asks the predictors, follows the one that saved most in trials, and lets them learn."""

import threading
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch

from ...tiering.policy.prefetch.predictor_choice import BOTH, CO_ACTIVATION, ROUTER, Predictors
from ..routing.router import Prediction
from .coactivation import CoActivation

_FEW = 8
"""Tokens up to which co-activation guesses: many tokens use nearly every expert."""


class _Trial(NamedTuple):
    before: torch.Tensor
    guesses: dict[str, tuple[list[int], float]]
    absent: frozenset[int]


class Guesses:
    """Guesses the experts that a layer will use, while the layer before it is computed."""

    def __init__(
        self,
        predictors: Predictors,
        router: Prediction | None,
        co_activation: CoActivation,
        absent: Callable[[Collection[int]], frozenset[int]],
    ) -> None:
        """``predictors`` is shared by all layers. ``router`` is that of the layer, None where it is not recognised.
        ``absent`` gives those of some experts of the layer that are not in memory."""
        self._predictors, self._router, self._co_activation, self._absent = predictors, router, co_activation, absent
        self._trial = threading.local()

    def experts(self, hidden: torch.Tensor, before: torch.Tensor) -> list[int]:
        """The experts that the layer will probably use. ``hidden`` [tokens, width] is the input of the experts of the
        layer before, where ``before`` [tokens, top_k] are chosen."""
        followed = CO_ACTIVATION if self._router is None else self._predictors.followed
        names = self._names() if self._predictors.trial else [followed]
        guesses = {name: self._timed(name, hidden, before) for name in names}
        if self._predictors.trial:
            everything = {expert for guess, _ in guesses.values() for expert in guess}
            self._trial.now = _Trial(before, guesses, self._absent(everything))
        return guesses[followed][0]

    def used(self, chosen: torch.Tensor) -> None:
        """The layer was asked for ``chosen`` [tokens, top_k]: judge the guesses of a trial, and learn."""
        trial: _Trial | None = getattr(self._trial, "now", None)
        if trial is None:
            return
        self._trial.now = None
        if len(trial.before) != len(chosen):
            return  # tokens of another forward
        experts = set(chosen.flatten().tolist())
        for name, (guess, seconds) in trial.guesses.items():
            self._predictors.judge(name, guessed=guess, used=experts, absent=trial.absent, seconds=seconds)
        self._co_activation.learn(trial.before, chosen)

    def _names(self) -> list[str]:
        return [name for name in self._predictors.records if self._router is not None or name == CO_ACTIVATION]

    def _timed(self, name: str, hidden: torch.Tensor, before: torch.Tensor) -> tuple[list[int], float]:
        start = time.monotonic()
        top_k = before.shape[1]
        by_router = self._router.experts(hidden, top_k) if self._router is not None and name != CO_ACTIVATION else []
        if name == ROUTER:
            guess = by_router
        else:
            guess = self._co_activation.experts(before, top_k) if len(before) <= _FEW else []
            if name == BOTH:
                guess = [expert for expert in by_router if expert in guess]
        return guess, time.monotonic() - start
