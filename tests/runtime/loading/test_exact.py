"""Bit for bit what transformers computes, for every architecture, whatever the budget."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import penstock
from tests.support.engines import engine_of
from tests.support.logits import least_budget, logits
from tests.support.tiny_models import NAMES, save_tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder, store = save_tiny(name, tmp_path / name, dtype), tmp_path / "store"
    reference = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    expected = logits(reference)
    least = least_budget(folder, store)
    for share in (1.1, 1.0, 0.5, 0.0):
        with penstock.load(folder, store=store, host_memory="1GiB", attn_implementation="eager") as model:
            total = sum(block.extent.length for block in engine_of(model).bundle.manifest.blocks)
        budget = max(int(share * total), least)
        with penstock.load(folder, store=store, host_memory=budget, attn_implementation="eager") as model:
            found = logits(model)
            engine_of(model).check_integrity()
            stats = model.penstock.stats()
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), (name, share)
        assert stats.host_bytes <= budget
        everything = not model.penstock.placement.streamed and stats.evictions == 0
        assert everything or share <= 1, "what fits is read once"
        assert not everything or share > 0, "what does not fit is streamed"


@pytest.mark.parametrize("rows", [1, 3])
def test_logits_of_the_last_token_of_a_batch(rows: int, tmp_path: Path) -> None:
    """The output layer gets a slice that is not contiguous: torch folds it only for weights that require gradients."""
    folder = tmp_path / "model"
    config = LlamaConfig(
        hidden_size=512, intermediate_size=512, num_hidden_layers=1, num_attention_heads=8, vocab_size=3000
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    ids = torch.randint(0, 3000, (rows, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder).eval()(ids, logits_to_keep=1).logits
        with penstock.load(folder, store=tmp_path / "store", host_memory="1GiB") as model:
            assert torch.equal(model(ids, logits_to_keep=1).logits, expected)
