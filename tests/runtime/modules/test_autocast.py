"""Under autocast a streamed model computes what transformers computes there, and nothing remembers cast weights."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

import penstock
from tests.support.pairs import BUDGETS, IDS, pair
from tests.support.tiny_models import save_tiny

CASTS = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("cast", CASTS, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "in-bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "mixtral", "gpt_oss"])
def test_logits_under_autocast(name: str, dtype: torch.dtype, cast: torch.dtype, tmp_path: Path) -> None:
    for budget in BUDGETS:
        with pair(tmp_path, name, budget, dtype) as both, torch.autocast("cpu", dtype=cast):
            assert both.same_logits(), budget
            assert both.same_logits(IDS[:1, :1]), budget
            assert both.same_logits(IDS[:1, :1]), "a second time"


def test_one_autocast_context_over_several_models_and_modules(tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "least") as both, torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        states = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
        for plain, streamed in zip(both.plain.model.layers, both.streamed.model.layers, strict=True):
            assert torch.equal(plain.mlp(states), streamed.mlp(states))
            weight = plain.mlp.up_proj.weight, streamed.mlp.up_proj.weight
            assert torch.equal(*(functional.linear(states, each) for each in weight))
        assert both.same_logits()


def test_the_cache_of_casts_is_as_before_after_a_forward(tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "least") as both, torch.autocast("cpu", dtype=torch.bfloat16):
        both.streamed(IDS)
        assert torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("format_", ["int8", "lossless"])
def test_packed_weights_are_cast_too(format_: str, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model", torch.bfloat16, hidden_size=128, intermediate_size=256)
    with penstock.load(folder, store=tmp_path / "store", weights_format=format_) as model, torch.no_grad():
        layer = model.model.layers[0].mlp.up_proj
        states = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(0))
        numbers = layer.weight.detach().clone()
        for cast in CASTS:
            with torch.autocast("cpu", dtype=cast):
                found, expected = layer(states.bfloat16()), functional.linear(states.bfloat16(), numbers)
                assert found.dtype == cast
                assert torch.equal(found, expected) or cast == torch.bfloat16
                assert model(IDS).logits.dtype == cast
