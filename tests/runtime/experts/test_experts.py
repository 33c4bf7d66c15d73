"""Experts: the grouping is that of the eager code, and what is not bit for bit equal is not trusted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import penstock
from penstock.kernels.experts import experts as kernel
from penstock.runtime.experts import experts
from penstock.runtime.experts.expert_groups import group, move_groups
from tests.support.engines import engine_of
from tests.support.logits import least_budget, logits


@given(st.integers(1, 40), st.integers(1, 4), st.integers(4, 9), st.integers(0, 1 << 30))
def test_grouping_is_that_of_the_eager_code(tokens: int, top_k: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Distinct experts per token; the number ``count`` itself means "none".
    index = torch.stack([torch.randperm(count + 1, generator=generator)[:top_k] for _ in range(tokens)])
    found = group(index, count)
    mask = torch.nn.functional.one_hot(index, num_classes=count + 1).permute(2, 1, 0)
    expected = [expert for expert in range(count) if mask[expert].any()]
    assert list(found) == expected
    for expert in expected:
        picks, rows = torch.where(mask[expert])
        assert torch.equal(found[expert][0], rows)
        assert torch.equal(found[expert][1], picks)
    elsewhere = move_groups(found, torch.device("meta"))
    assert list(elsewhere) == expected
    assert all(len(rows) == len(found[expert][0]) for expert, (rows, _) in elsewhere.items())
    assert all(each.is_meta and each.dtype == torch.long for both in elsewhere.values() for each in both)


@pytest.fixture
def expected(tiny_moe_folder: Path) -> list[torch.Tensor]:
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return logits(AutoModelForCausalLM.from_pretrained(tiny_moe_folder, **options).eval())


def run(folder: Path, store: Path) -> tuple[list[torch.Tensor], Any]:
    budget = least_budget(folder, store)
    with penstock.load(folder, store=store, host_memory=budget, attn_implementation="eager") as model:
        found = logits(model)
        engine_of(model).check_integrity()
        return found, experts.streamed_experts(model.model.layers[0].mlp.experts).trust


def test_experts_that_differ_in_a_bit_run_their_own_code(
    tiny_moe_folder: Path, store: Path, expected: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    product = kernel.compute_expert
    monkeypatch.setattr(kernel, "compute_expert", lambda *args: product(*args) * (1 + 2**-20))
    found, trusted = run(tiny_moe_folder, store)
    assert set(trusted.values()) == {False}
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_equal_experts_are_trusted(tiny_moe_folder: Path, store: Path, expected: list[torch.Tensor]) -> None:
    found, trusted = run(tiny_moe_folder, store)
    assert set(trusted.values()) == {True}
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_stacked_weights_are_taken_as_a_whole_where_they_have_room(tiny_moe_folder: Path, store: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(tiny_moe_folder).model.layers[1].mlp.experts.down_proj
    with penstock.load(tiny_moe_folder, store=store, host_memory="1GiB") as model:
        assert torch.equal(model.model.layers[1].mlp.experts.down_proj + 1, expected + 1)
    with penstock.load(tiny_moe_folder, store=store, host_memory=least_budget(tiny_moe_folder, store)) as model:
        stacked = model.model.layers[1].mlp.experts.down_proj
        assert torch.equal(stacked[3] + 1, expected[3] + 1)
        with pytest.raises(penstock.UnplaceableModule, match=r"layers.1.mlp.experts.down_proj is used as a whole"):
            stacked + 1
