"""Gradients through a streamed model are never lost without a word."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from tests.support.pairs import IDS, Pair, pair


@pytest.fixture(params=["least", "elastic"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with pair(tmp_path, "llama", request.param) as models:
        yield models


def embeddings() -> torch.Tensor:
    """A soft prompt [1, 5, 64] that is to be trained."""
    return torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()


LOSSES: dict[str, Callable[[Any], torch.Tensor]] = {
    "loss": lambda model: model(IDS, labels=IDS).loss,
    "logits": lambda model: model(IDS).logits.float().square().mean(),
    "a slice": lambda model: model(IDS, logits_to_keep=1).logits.sum(),
    "a tuple": lambda model: model(IDS, return_dict=False)[0].sum(),
    "hidden states": lambda model: model(IDS, output_hidden_states=True).hidden_states[1].sum(),
    "changed in place": lambda model: model(IDS).logits.mul_(2).sum(),
    "a soft prompt": lambda model: model(inputs_embeds=embeddings()).logits.sum(),
    "a term beside": lambda model: model(IDS).logits.sum() + embeddings().sum(),
    "the inner model": lambda model: model.model(IDS).last_hidden_state.sum(),
    "a layer's module": lambda model: model.model.layers[0].mlp(embeddings()).sum(),
    "a weight": lambda model: model.model.layers[0].mlp.up_proj.weight.norm(),
    "a view on a weight": lambda model: (torch.ones(64) @ model.model.layers[0].mlp.up_proj.weight.T).sum(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_who_asks_for_them_is_told(loss: Callable[[Any], torch.Tensor], both: Pair) -> None:
    wanted, found = loss(both.plain), loss(both.streamed)
    assert torch.equal(wanted, found)
    wanted.backward()
    with pytest.raises(penstock.PenstockError, match="no gradients"):
        found.backward()


def test_what_needs_none_has_none(both: Pair) -> None:
    both.streamed.requires_grad_(False)
    out = both.streamed(IDS, output_hidden_states=True)
    assert not any(each.requires_grad for each in [out.logits, *out.hidden_states])
    with torch.no_grad():
        assert not both.streamed(inputs_embeds=embeddings()).logits.requires_grad
    with torch.inference_mode():
        assert not both.streamed(IDS).logits.requires_grad


def test_a_soft_prompt_keeps_its_own(both: Pair) -> None:
    """The first of the hidden states is the input itself."""
    prompt = embeddings()
    state = both.streamed(inputs_embeds=prompt, output_hidden_states=True).hidden_states[0]
    state.sum().backward()
    assert torch.equal(prompt.grad, torch.ones_like(prompt))


def test_the_input_of_a_model_is_not_marked(both: Pair) -> None:
    prompt = embeddings().detach()
    both.streamed(inputs_embeds=prompt, output_hidden_states=True)
    assert not prompt.requires_grad


def test_a_module_asks_for_its_own_weights_only(both: Pair) -> None:
    """As PEFT trains: the weights of the model are frozen, those beside them are not."""
    for model in both:
        model.requires_grad_(False)
        model.lm_head.extra = nn.Linear(64, 4)
    ids = torch.arange(3, 9).reshape(1, 6)
    for path in ("model.embed_tokens", "model.layers.0.mlp", "model.norm", "model"):
        given = torch.ones(1, 3, 64) if path in ("model.layers.0.mlp", "model.norm") else ids
        outs = (model.get_submodule(path)(given) for model in both)
        wanted, found = (getattr(out, "last_hidden_state", out) for out in outs)
        assert torch.equal(wanted, found)
        assert not wanted.requires_grad
        assert not found.requires_grad, path
    assert both.streamed(IDS).logits.requires_grad
