"""``model.to`` with the dtype that the model has: what transformers casts by that is cast."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import penstock
from tests.support.logits import least_budget
from tests.support.pairs import BUDGETS, pair
from tests.support.tiny_models import save_tiny


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("budget", BUDGETS)
def test_tables_of_positions_are_cast(budget: str, dtype: torch.dtype, tmp_path: Path) -> None:
    with pair(tmp_path, "llama", budget, dtype) as both:
        assert both.same_logits()
        bare = both.streamed.model.rotary_emb.inv_freq.clone()
        for model in both:
            assert model.to(dtype) is model
        assert bare.dtype == torch.float32
        assert both.streamed.model.rotary_emb.inv_freq.dtype == dtype
        assert both.same_logits()


def test_the_own_device_casts_nothing(tmp_path: Path) -> None:
    with pair(tmp_path, "llama", dtype=torch.bfloat16) as both:
        both.streamed.to("cpu")
        assert both.streamed.model.rotary_emb.inv_freq.dtype == torch.float32
        assert both.same_logits()


def test_parameters_of_the_user_are_cast(tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "least", torch.bfloat16) as both:
        for model in both:
            projection = model.model.layers[0].self_attn.q_proj
            projection.bias = nn.Parameter(torch.linspace(-1, 1, projection.out_features))
            model.to(torch.bfloat16)
        assert both.same_logits()


def test_weights_of_the_bundle_are_not_cast(tmp_path: Path) -> None:
    source, store = save_tiny("llama", tmp_path / "model", torch.bfloat16), tmp_path / "store"
    least = least_budget(source, store)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.lm_head.float()
    with penstock.wrap(model, store=store, host_memory=2 * least, host_memory_floor=least) as streamed:
        with pytest.raises(penstock.ConfigError, match="places the weights itself"):
            streamed.to(torch.bfloat16)
        assert streamed.lm_head.weight.dtype == torch.float32
        assert streamed.model.rotary_emb.inv_freq.dtype == torch.float32
