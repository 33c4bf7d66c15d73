"""Perplexity, KL divergence and agreement: against straightforward torch code, and on models run in windows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM

from penstock.runtime.evaluation import evaluation
from penstock.runtime.evaluation.evaluation import QualityMeter, evaluate, predicted, windows
from penstock.runtime.evaluation.logits import KeptLogits
from penstock.tiering.errors import EvaluationError
from tests.support.tiny_models import tiny_config

IDS = torch.randint(3, 320, (60,), generator=torch.Generator().manual_seed(1)).tolist()


def made(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def divergence(original: torch.Tensor, tested: torch.Tensor) -> float:
    p, q = (logits.double().log_softmax(-1) for logits in (original, tested))
    return functional.kl_div(q, p, log_target=True, reduction="batchmean").item()


# --- the measures ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_measures_are_the_textbook_ones(dtype):
    original, tested = made(40, 70, seed=1), made(40, 70, seed=2, dtype=dtype)
    tested[::2] = original[::2]
    targets = torch.arange(40)
    measure = QualityMeter()
    measure.add(tested, targets, original)
    found = measure.quality()
    assert found.tokens == 40
    assert found.perplexity == pytest.approx(functional.cross_entropy(tested.double(), targets).exp().item(), rel=1e-12)
    assert found.kl_divergence == pytest.approx(divergence(original, tested), rel=1e-12)
    assert found.kl_divergence != pytest.approx(divergence(tested, original), rel=1e-2), "it has a direction"
    same = sum(a.tolist().index(a.max()) == b.tolist().index(b.max()) for a, b in zip(original, tested, strict=True))
    assert 20 <= same < 40
    assert found.top1_agreement == same / 40


@given(st.integers(1, 12), st.integers(2, 30), st.integers(1, 12), st.integers(0, 99))
def test_measures_do_not_depend_on_how_rows_come(rows, vocabulary, piece, seed):
    original, tested = made(rows, vocabulary, seed=seed), made(rows, vocabulary, seed=seed + 1)
    targets = torch.arange(rows) % vocabulary
    whole, parts = QualityMeter(), QualityMeter()
    whole.add(tested, targets, original)
    for start in range(0, rows, piece):
        taken = slice(start, start + piece)
        parts.add(tested[taken], targets[taken], original[taken])
    a, b = whole.quality(), parts.quality()
    assert a.kl_divergence >= 0
    assert (a.tokens, a.top1_agreement) == (b.tokens, b.top1_agreement)
    assert b.perplexity == pytest.approx(a.perplexity, rel=1e-12)
    assert b.kl_divergence == pytest.approx(a.kl_divergence, rel=1e-12)


@pytest.mark.parametrize("given_original", [True, False])
def test_an_original_is_exactly_itself(given_original):
    logits, measure = made(30, 50, seed=3), QualityMeter()
    logits[3, 4] = -math.inf
    measure.add(logits, torch.zeros(30, dtype=torch.long), logits.clone() if given_original else None)
    assert (measure.quality().kl_divergence, measure.quality().top1_agreement) == (0.0, 1.0)


def test_of_equally_probable_tokens_the_first_counts():
    measure = QualityMeter()
    original = torch.tensor([[1.0, 5, 5, 0], [1, 5, 5, 0]])
    tested = torch.tensor([[1.0, 5, 4, 0], [1, 4, 5, 0]])
    measure.add(tested, torch.tensor([0, 0]), original)
    assert measure.quality().top1_agreement == 0.5


def test_a_token_that_is_ruled_out():
    ruled_out, original = torch.tensor([[0.0, -math.inf, 1.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    measure = QualityMeter()
    measure.add(ruled_out, torch.tensor([1]), original)
    assert (measure.quality().perplexity, measure.quality().kl_divergence) == (math.inf, math.inf)
    measure = QualityMeter()
    measure.add(original, torch.tensor([1]), ruled_out)
    assert measure.quality().kl_divergence == pytest.approx(
        divergence(ruled_out[:, ::2], original[:, ::2]) + math.log(original.exp().sum() / original[:, ::2].exp().sum())
    )
    measure = QualityMeter()
    measure.add(torch.tensor([[0.0, 2000.0]]), torch.tensor([0]))
    assert measure.quality().perplexity == math.inf, "more than a float holds"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers(bad):
    measure = QualityMeter()
    measure.add(made(4, 9, seed=0), torch.zeros(4, dtype=torch.long))
    broken = made(1, 9, seed=0)
    broken[0, 5] = bad
    with pytest.raises(EvaluationError, match="no probabilities near token 5"):
        measure.add(broken, torch.tensor([2]))


# --- windows ---


@given(st.lists(st.integers(0, 9), max_size=40), st.lists(st.just(77), max_size=1), st.integers(2, 12))
def test_windows_hold_every_token_once(ids, first, size):
    found = windows(ids, first, size)
    assert all(2 <= len(window) <= size and window[: len(first)] == first for window in found)
    assert all(len(window) == size for window in found[:-1])
    text = [token for window in found for token in window[len(first) :]]
    assert text == ids or (not first and [*text, ids[-1]] == ids and len(ids) % size == 1)
    assert predicted(found) == len(text) - (0 if first else len(found))


# --- models ---


def built(name: str, noise: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)
            weight.add_(torch.randn_like(weight), alpha=noise)
    return model


@pytest.mark.parametrize(("piece", "block"), [(1 << 20, 1 << 20), (5 * 320 * 4, 2 * 320 * 8), (1, 1)])
@torch.no_grad()
def test_a_model_against_another(tmp_path, monkeypatch, piece, block):
    monkeypatch.setattr(evaluation, "PIECE", piece)
    monkeypatch.setattr(evaluation, "BLOCK", block)
    original, tested = built("llama"), built("llama", noise=0.01)
    parts, advanced = windows(IDS, [], 16), []
    with KeptLogits(tmp_path, predicted(parts)) as kept:
        own = evaluate(original, parts, keep=kept, advance=advanced.append)
        again = evaluate(original, parts, against=kept)
        found = evaluate(tested, parts, against=kept)
    losses = [original(torch.tensor([part]), labels=torch.tensor([part])).loss * (len(part) - 1) for part in parts]
    tokens = len(IDS) - len(parts)
    assert sum(advanced) == own.quality.tokens == tokens
    assert own.quality.perplexity == pytest.approx((sum(losses) / tokens).exp().item(), rel=1e-5)
    assert own.quality == again.quality
    assert (own.quality.kl_divergence, own.quality.top1_agreement) == (0.0, 1.0)
    rows = [[model(torch.tensor([part])).logits[0, :-1] for part in parts] for model in (original, tested)]
    before, after = (torch.cat(each) for each in rows)
    assert found.quality.kl_divergence == pytest.approx(divergence(before, after), rel=1e-3)
    assert found.quality.kl_divergence > 1e-5
    assert found.quality.top1_agreement == (before.argmax(-1) == after.argmax(-1)).double().mean().item() < 1
    assert found.seconds > 0
