"""Copies of modules compute what torch's own copies do."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import penstock
from tests.support.pairs import BUDGETS, IDS, Pair, pair


@pytest.fixture(params=BUDGETS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with pair(tmp_path, "llama", request.param) as models:
        yield models


def test_deep_copies_are_plain(both: Pair) -> None:
    states = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    for plain, streamed in zip(both.plain.model.layers, both.streamed.model.layers, strict=True):
        copied = copy.deepcopy(streamed.mlp)
        assert torch.equal(copied(states), plain.mlp(states))
        with torch.no_grad():
            copied.up_proj.weight.zero_()
        assert not copied(states).any()
        assert torch.equal(streamed.mlp(states), plain.mlp(states))
    for refused in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(penstock.PenstockError, match="load"):
            refused(both.streamed)


def test_a_pickled_module_is_plain(both: Pair) -> None:
    states = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    for plain, streamed in zip(both.plain.model.layers, both.streamed.model.layers, strict=True):
        copied = pickle.loads(pickle.dumps(streamed.mlp))
        assert not any("penstock" in type(weight).__module__ for weight in copied.parameters())
        assert torch.equal(copied(states), plain.mlp(states))
    assert both.same_logits()


def test_a_shallow_copy_follows_its_own_attributes(both: Pair) -> None:
    states = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    outs = []
    for model in both:
        made = copy.copy(model.model.layers[0].mlp)
        made.act_fn = torch.nn.Tanh()
        assert made.up_proj.weight is model.model.layers[0].mlp.up_proj.weight
        outs.append(made(states))
    assert torch.equal(*outs)
    assert both.same_logits()


def repeat_a_layer(model: PreTrainedModel) -> None:
    """As those do who run the middle of a model twice without its weights twice in memory."""
    layers = model.model.layers
    again = copy.copy(layers[0])
    again._modules = dict(again._modules)
    again.self_attn = copy.copy(layers[0].self_attn)
    layers.insert(1, again)
    for number, layer in enumerate(layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = len(layers)


def test_a_layer_may_be_there_twice(both: Pair) -> None:
    for model in both:
        repeat_a_layer(model)
    options = {"max_new_tokens": 6, "do_sample": False}
    texts = [model.generate(IDS, **options) for model in both]
    assert torch.equal(*texts)
    assert both.same_logits()


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_shallow_copy_of_experts(name: str, tmp_path: Path) -> None:
    states = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    index, weights = torch.tensor([[0, 2], [3, 1]]), torch.tensor([[0.25, 0.5], [0.5, 0.125]])
    with pair(tmp_path, name, "least") as both, torch.no_grad():
        outs = [copy.copy(model.model.layers[0].mlp.experts)(states, index, weights) for model in both]
        assert torch.equal(*outs)
