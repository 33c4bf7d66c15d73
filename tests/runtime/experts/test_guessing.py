"""Guesses by routers and by what was used together: who is asked, who learns, and what a model says of it."""

from pathlib import Path

import pytest
import torch

import penstock
from penstock.runtime.experts.coactivation import CoActivation
from penstock.runtime.experts.guessing import Guesses
from penstock.runtime.modules import attach as attached
from penstock.tiering.policy.prefetch.predictor_choice import BOTH, CO_ACTIVATION, ROUTER, Predictors
from tests.support.logits import IDS, least_budget

HIDDEN = torch.zeros(1, 4)


class Always:
    """A router that always says the same."""

    def __init__(self, *experts: int) -> None:
        self._experts = list(experts)

    def experts(self, hidden: torch.Tensor, top_k: int) -> list[int]:
        return self._experts


def chosen(*experts: int) -> torch.Tensor:
    return torch.tensor([experts])


def test_co_activation_says_what_followed() -> None:
    together = CoActivation(4, 4)
    for _ in range(3):
        together.learn(chosen(0, 1), chosen(2, 3))
        together.learn(chosen(2, 3), chosen(0, 2))
    assert sorted(together.experts(chosen(0, 1), 2)) == [2, 3]
    assert sorted(together.experts(chosen(3, 2), 2)) == [0, 2]
    together.learn(chosen(2, 3), chosen(0, 1))
    assert together.experts(chosen(3, 2), 2) == [0, 2], "the likeliest first"
    assert together.experts(torch.tensor([[0, 1], [2, 3]]), 2) == [0, 2, 3]


def test_no_expert_is_never_guessed() -> None:
    together = CoActivation(4, 4)
    for _ in range(5):
        together.learn(chosen(4, 0), chosen(4, 1))
    assert together.experts(chosen(4, 0), 1) == [1]


def test_old_counts_fade() -> None:
    together = CoActivation(2, 2)
    together.learn(torch.zeros(3 << 19, 1, dtype=torch.int64), torch.zeros(3 << 19, 1, dtype=torch.int64))
    together.learn(torch.zeros(1 << 20, 1, dtype=torch.int64), torch.ones(1 << 20, 1, dtype=torch.int64))
    assert together.experts(torch.zeros(1, 1, dtype=torch.int64), 1) == [1]


def guesses(predictors: Predictors, router: Always | None) -> Guesses:
    return Guesses(predictors, router, CoActivation(8, 8), lambda experts: frozenset(experts))  # type: ignore[arg-type]


def test_in_a_trial_all_are_asked_and_one_is_followed() -> None:
    predictors = Predictors((ROUTER, BOTH, CO_ACTIVATION))
    layer = guesses(predictors, Always(5, 6))
    for _ in range(200):
        predictors.tick(price=1.0, read_seconds=0.001)
        layer.experts(HIDDEN, chosen(0, 1))
        layer.used(chosen(5, 7))
    records = predictors.records
    assert (records[ROUTER].precision, records[ROUTER].recall) == (0.5, 0.5)
    assert records[CO_ACTIVATION].precision > 0.9
    assert records[BOTH].precision > 0.9
    assert records[BOTH].recall == pytest.approx(0.5, abs=0.1)
    assert predictors.followed == CO_ACTIVATION
    assert sorted(layer.experts(HIDDEN, chosen(0, 1))) == [5, 7]


def test_outside_of_a_trial_only_the_one_that_is_followed_is_asked() -> None:
    predictors = Predictors((ROUTER, BOTH, CO_ACTIVATION))
    layer = guesses(predictors, Always(5, 6))
    predictors.tick(price=1.0, read_seconds=0.001)
    predictors.tick(price=1.0, read_seconds=0.001)
    assert not predictors.trial
    assert layer.experts(HIDDEN, chosen(0, 1)) == [5, 6]
    layer.used(chosen(5, 6))
    assert predictors.records[ROUTER].guessed == 0


def test_what_is_used_without_a_guess_or_by_others_is_not_judged() -> None:
    predictors = Predictors((ROUTER, BOTH, CO_ACTIVATION))
    layer = guesses(predictors, Always(5, 6))
    predictors.tick(price=1.0, read_seconds=0.001)
    layer.used(chosen(5, 6))
    layer.experts(HIDDEN, chosen(0, 1))
    layer.used(torch.tensor([[5, 6], [5, 6]]))
    assert predictors.records[ROUTER].guessed == 0


def test_without_a_router_co_activation_guesses_whoever_is_followed() -> None:
    predictors = Predictors((ROUTER, BOTH, CO_ACTIVATION))
    layer = guesses(predictors, None)
    predictors.tick(price=1.0, read_seconds=0.001)
    layer.experts(HIDDEN, chosen(0, 1))
    layer.used(chosen(5, 7))
    predictors.tick(price=1.0, read_seconds=0.001)
    assert predictors.followed == ROUTER
    assert sorted(layer.experts(HIDDEN, chosen(0, 1))) == [5, 7]


def test_many_tokens_are_left_to_the_router() -> None:
    predictors = Predictors((CO_ACTIVATION,))
    layer = guesses(predictors, None)
    assert layer.experts(torch.zeros(9, 4), torch.zeros(9, 2, dtype=torch.int64)) == []


def test_a_model_whose_routers_nobody_recognises_is_guessed_by_co_activation(
    tiny_moe_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attached, "predict_with", lambda model, path: None)
    budget = least_budget(tiny_moe_folder, store)
    with penstock.load(tiny_moe_folder, store=store, host_memory=2 * budget, attn_implementation="eager") as model:
        found = model.generate(IDS, max_new_tokens=40, pad_token_id=0)
        stats = model.penstock.stats()
    assert set(stats.predictors) == {ROUTER, BOTH, CO_ACTIVATION}
    assert stats.predictors[ROUTER].guessed == 0
    with penstock.load(
        tiny_moe_folder, store=store, host_memory=2 * budget, experts_prefetch="off", attn_implementation="eager"
    ) as model:
        assert torch.equal(found, model.generate(IDS, max_new_tokens=40, pad_token_id=0))


@pytest.mark.parametrize("memory", ["ample", "least"])
def test_nothing_is_guessed_while_all_experts_are_in_memory(
    memory: str, tiny_moe_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Tensor] = []
    guess = Guesses.experts

    def counted(self: Guesses, hidden: torch.Tensor, before: torch.Tensor) -> list[int]:
        asked.append(before)
        return guess(self, hidden, before)

    monkeypatch.setattr(Guesses, "experts", counted)
    budget = "64MiB" if memory == "ample" else least_budget(tiny_moe_folder, store)
    with penstock.load(tiny_moe_folder, store=store, host_memory=budget) as model, torch.no_grad():
        model(torch.arange(256).view(1, -1) + 3)  # needs every expert
        before = len(asked)
        model(IDS)
        assert (len(asked) > before) == (memory == "least")
