"""Attention of single tokens in models: by our kernel, with transformers' bits, unless somebody chose otherwise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import penstock
from penstock.kernels.native import KERNELS
from penstock.runtime.modules import row_attention
from tests.support.tiny_models import save_tiny

native = pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")
LENGTH, PROMPT = 40, 12


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether our kernel computed, for each call that might."""
    found: list[bool] = []
    kernel = row_attention.attend_row

    def attend(*args: Any) -> torch.Tensor | None:
        out = kernel(*args)
        found.append(out is not None)
        return out

    monkeypatch.setattr(row_attention, "attend_row", attend)
    return found


def decode(model: Any, rows: int = 1) -> torch.Tensor:
    """Logits of a prompt and of tokens one by one."""
    ids = torch.randint(3, 320, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(ids[:, :PROMPT], use_cache=True)
        steps = [model(ids[:, at : at + 1], past_key_values=out.past_key_values) for at in range(PROMPT, LENGTH)]
    return torch.stack([each.logits[:, -1] for each in (out, *steps)])


def same(name: str, tmp_path: Path, rows: int = 1, **overrides: Any) -> None:
    """Penstock's logits for a tiny model are transformers' in every bit."""
    folder = save_tiny(name, tmp_path / name, torch.bfloat16, **overrides)
    theirs = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    ours = penstock.load(folder, store=tmp_path / "store")
    try:
        assert torch.equal(decode(ours, rows), decode(theirs, rows))
    finally:
        ours.penstock.close()


@native
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox", "qwen3_moe", "gemma3_text"])
def test_taken_with_the_bits_of_transformers(name: str, rows: int, tmp_path: Path, taken: list[bool]) -> None:
    same(name, tmp_path, rows)
    assert taken
    assert all(taken)


@native
@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3"])
def test_attention_of_another_kind_is_left_alone(name: str, tmp_path: Path, taken: list[bool]) -> None:
    """gpt-oss has sinks, and is eager; deepseek's values are smaller than its keys."""
    same(name, tmp_path)
    assert not any(taken)


@native
def test_a_function_that_a_user_registered_is_called(
    tmp_path: Path, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    model = penstock.load(save_tiny("llama", tmp_path / "llama", torch.bfloat16), store=tmp_path / "store")
    try:
        assert model.config._attn_implementation == row_attention.IMPLEMENTATION
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", counted)
        decode(model)
        assert len(calls) == 2 * (LENGTH - PROMPT + 1)
        assert not taken
        model.set_attn_implementation("eager")
        decode(model)
        assert len(calls) == 2 * (LENGTH - PROMPT + 1)
        assert not taken
    finally:
        model.penstock.close()


def test_code_that_asks_for_the_name_keeps_it() -> None:
    assert row_attention._asks_for_name("transformers.models.falcon.modeling_falcon")
    assert row_attention._asks_for_name("a module that nobody can read")
    assert not row_attention._asks_for_name("transformers.models.llama.modeling_llama")
