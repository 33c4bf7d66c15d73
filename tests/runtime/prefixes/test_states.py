"""Prompts of recurrent models are kept where the model goes on from its states, and left alone where it does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

import penstock
from penstock.runtime.prefixes import prefix, states
from penstock.runtime.prefixes.calls import compute_part
from penstock.tiering.errors import PrefixError
from tests.fuzz.architectures import config_of
from tests.support.prefixed_models import prefixes_of, tokens
from tests.support.tiny_models import shake

PROMPT = torch.tensor([tokens(200)])
GOING_ON = ("bamba", "lfm2", "qwen3_next")
"""bamba counts positions from 0 in each call, unless it is told them. lfm2 has convolutions alone."""
BEGINNING_ANEW = ("jamba", "recurrent_gemma")
"""The first leaves its recurrent state where several tokens come, the other has it in its modules."""


@pytest.fixture(autouse=True)
def fresh_verdicts(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    verdicts: dict[str, bool] = {}
    monkeypatch.setattr(states, "BIT_TRIALS", verdicts)
    monkeypatch.setattr(prefix, "worth_reading", lambda *_, **__: True)
    return verdicts


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name, {}), dtype=dtype, attn_implementation="eager").eval()
    shake(model)
    return model


def first_logits(model: Any) -> torch.Tensor:
    """Of the first new token behind PROMPT."""
    options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return model.generate(PROMPT, pad_token_id=0, **options).logits[0]


@pytest.mark.parametrize("name", GOING_ON + BEGINNING_ANEW)
def test_kept_prompts_leave_the_numbers_of_recurrent_models(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path / "model")
    wanted = first_logits(model)
    options = {"store": tmp_path / "store", "kv_prefix": "8MiB", "attn_implementation": "eager"}
    with penstock.load(tmp_path / "model", host_memory="64MiB", **options) as ours:
        for _ in range(3):
            found = first_logits(ours)
            assert float((found - wanted).abs().max()) < 2e-5 * float(wanted.abs().max())
            ours.penstock.prefixes.flush()
        stats = ours.penstock.stats()
    if name in GOING_ON:
        assert (stats.prefix_hits, stats.prefix_problem) == (1, "")
    else:
        assert stats.prefix_hits == stats.prefix_bytes_written == 0
        assert "does not go on from its recurrent state" in stats.prefix_problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", GOING_ON + BEGINNING_ANEW)
def test_the_trial_knows_in_any_dtype_and_once(name: str, dtype: torch.dtype, fresh_verdicts: dict[str, bool]) -> None:
    model, ids = model_of(name, dtype), tokens(40)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, args, named: calls.append(args[0].shape[1]), with_kwargs=True)
    for _ in range(2):
        assert states.goes_on_from_states(model, ids, kind=name) == (name in GOING_ON)
    assert len(calls) <= 2
    assert [*fresh_verdicts.values()] == [name in GOING_ON]


def test_short_prompts_and_models_without_states_are_not_tried(tmp_path: Path, fresh_verdicts: dict[str, bool]) -> None:
    for name, count in (("gemma3_text", 100), ("jamba", 20)):
        model = model_of(name)
        with prefixes_of(model, tmp_path / name) as prefixes:
            assert prefixes.can_go_on(model, tokens(count))
    assert not fresh_verdicts


def test_a_state_outside_of_the_cache_is_none_that_can_be_kept(tmp_path: Path) -> None:
    """A model says that it has a state, but its cache has room for keys and values alone."""
    model = model_of("llama")
    model._is_stateful = True
    with prefixes_of(model, tmp_path) as prefixes:
        assert not prefixes.can_go_on(model, tokens(100))
        assert "recurrent state" in prefixes.stats().problem


def test_a_cache_that_counts_no_tokens_is_not_supported(tmp_path: Path) -> None:
    model = model_of("mamba")
    with prefixes_of(model, tmp_path) as prefixes:
        assert not prefixes.supported
        assert not prefixes.can_go_on(model, tokens(100))
        with pytest.raises(PrefixError, match="something else than keys and values"):
            prefixes.save(tokens(64), DynamicCache(config=model.config))


def test_parts_are_told_their_positions() -> None:
    model, ids = model_of("bamba"), torch.tensor([tokens(50)])
    seen: list[list[int]] = []
    model.register_forward_pre_hook(
        lambda _, args, named: seen.append(named["position_ids"].flatten().tolist()), with_kwargs=True
    )
    cache = DynamicCache(config=model.config)
    for end in (32, 50):
        compute_part(model, ids, cache, end)
    assert seen == [[*range(32)], [*range(32, 50)]]


def test_forwards_of_a_cache_that_counts_no_tokens_are_not_watched(tmp_path: Path) -> None:
    """Such a cache was asked for its length in every forward, which is an error."""
    model = model_of("mamba")
    model.save_pretrained(tmp_path / "model")
    with penstock.load(tmp_path / "model", store=tmp_path / "store", kv_prefix="8MiB") as ours, torch.no_grad():
        found = ours(input_ids=PROMPT, past_key_values=DynamicCache(config=ours.config)).logits
        assert torch.equal(found, model(input_ids=PROMPT).logits)
