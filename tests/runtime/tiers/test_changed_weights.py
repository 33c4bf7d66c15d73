"""Weights that somebody changes: every module computes with the change, in memory that is counted, or it is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm
from transformers import PreTrainedModel

import penstock
from tests.support.engines import engine_of
from tests.support.pairs import BUDGETS, IDS, Pair, pair

NAMES = ("llama", "qwen3", "qwen3_moe", "mixtral")


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def layer_of(model: PreTrainedModel) -> Any:
    return model.model.layers[1]


def in_place(model: PreTrainedModel) -> None:
    layer_of(model).self_attn.q_proj.weight.mul_(1.5)
    layer_of(model).input_layernorm.weight.data.add_(0.25)


def a_slice(model: PreTrainedModel) -> None:
    layer_of(model).self_attn.k_proj.weight.data[3:5, ::2] = 0.5


def a_view(model: PreTrainedModel) -> None:
    layer_of(model).self_attn.v_proj.weight.T[2].zero_()


def by_data(model: PreTrainedModel) -> None:
    weight = layer_of(model).self_attn.o_proj.weight
    weight.data = weight.data.clone() * 0.5
    weight.data += 0.125


def another_parameter(model: PreTrainedModel) -> None:
    module = layer_of(model).self_attn.q_proj
    module.weight = nn.Parameter(torch.full_like(module.weight, 0.01))


def a_bias(model: PreTrainedModel) -> None:
    module = layer_of(model).self_attn.q_proj
    module.bias = nn.Parameter(torch.ones(module.weight.shape[0], dtype=module.weight.dtype))


def load_one(model: PreTrainedModel) -> None:
    shape = model.lm_head.weight.shape
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    assert not model.load_state_dict({"lm_head.weight": numbers}, strict=False).unexpected_keys


def init(model: PreTrainedModel) -> None:
    nn.init.constant_(model.model.embed_tokens.weight, 0.02)


def an_embedding_row(model: PreTrainedModel) -> None:
    model.model.embed_tokens.weight[IDS[0, 0]] += 1


def grow(model: PreTrainedModel) -> None:
    model.resize_token_embeddings(336, mean_resizing=False)
    fill(model, 320)


def shrink(model: PreTrainedModel) -> None:
    model.resize_token_embeddings(304)


def fill(model: PreTrainedModel, start: int) -> None:
    """Give new rows the same numbers in both models: they are drawn at random."""
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = embeddings.weight.data[start:]
        rows.copy_(torch.linspace(-1, 1, rows.numel()).view(rows.shape))


def tie(model: PreTrainedModel) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def take_from_another(model: PreTrainedModel) -> None:
    first, second = model.model.layers[0], model.model.layers[1]
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight


def a_parametrisation(model: PreTrainedModel) -> None:
    parametrize.register_parametrization(layer_of(model).self_attn.q_proj, "weight", Doubled())


def a_norm(model: PreTrainedModel) -> None:
    weight_norm(layer_of(model).self_attn.k_proj)


def pruning(model: PreTrainedModel) -> None:
    prune.l1_unstructured(layer_of(model).self_attn.q_proj, "weight", 0.5)


def pruning_for_good(model: PreTrainedModel) -> None:
    module = layer_of(model).self_attn.q_proj
    prune.l1_unstructured(module, "weight", 0.5)
    prune.remove(module, "weight")


CHANGES = [
    *(in_place, a_slice, a_view, by_data, another_parameter, a_bias, load_one, init, an_embedding_row),
    *(grow, shrink, tie, take_from_another, a_parametrisation, a_norm, pruning, pruning_for_good),
]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_computes_what_transformers_computes(
    change: Callable[[PreTrainedModel], None], budget: str, tmp_path: Path
) -> None:
    for name in NAMES:
        with pair(tmp_path / name, name, budget) as both:
            with torch.no_grad():
                change(both.plain)
                if not done_or_refused(change, both):
                    assert budget in ("least", "half"), name
                    continue
            assert both.same_logits(), name
            assert both.same_logits(IDS[:1, :1]), name
            generated = [model.generate(IDS[:1], max_new_tokens=4, do_sample=False) for model in both]
            assert torch.equal(*generated)
            engine_of(both.streamed).check_integrity()


def done_or_refused(change: Callable[[PreTrainedModel], None], both: Pair) -> bool:
    """Whether there was room for ``change``, and for computing with it. If not, the error says what to raise."""
    try:
        change(both.streamed)
        both.streamed(IDS)
    except penstock.PenstockError as error:
        if "host_memory" not in str(error):
            raise
        return False
    return True


def test_changed_weights_are_counted(tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "elastic") as both, torch.no_grad():
        stats = both.streamed.penstock.stats
        assert stats().changed_bytes == 0
        weight = both.streamed.model.layers[0].mlp.up_proj.weight
        size = weight.nbytes
        weight.add_(1)
        weight.add_(1)
        assert stats().changed_bytes == size
        both.streamed.lm_head.weight.data = torch.zeros(16, 64)
        assert stats().changed_bytes == size + 16 * 64 * 4


def test_without_room_for_a_copy_the_weight_is_named_and_left(tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "least") as both, torch.no_grad():
        weight = both.streamed.lm_head.weight
        with pytest.raises(penstock.BudgetTooSmall, match=r"lm_head\.weight was to be changed.*host_memory"):
            weight.zero_()
        assert torch.equal(weight.clone(), both.plain.lm_head.weight)
        assert both.same_logits()


def test_a_functional_call_is_undone(tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "ample") as both, torch.no_grad():
        name = "model.layers.0.mlp.up_proj.weight"
        other = {name: torch.full((96, 64), 0.01)}
        expected = functional_call(both.plain, other, (IDS,)).logits
        assert torch.equal(functional_call(both.streamed, other, (IDS,)).logits, expected)
        assert both.same_logits()


def test_freezing_changes_bits_as_in_transformers(tmp_path: Path) -> None:
    for budget in BUDGETS:
        with pair(tmp_path, "llama", budget, torch.bfloat16) as both:
            for model in both:
                model.requires_grad_(False)
            assert not any(weight.requires_grad for weight in both.streamed.parameters())
            assert both.same_logits(logits_to_keep=1)


@pytest.mark.parametrize("format_", ["int8", "lossless"])
def test_packed_weights_can_be_read_and_changed(format_: str, tmp_path: Path) -> None:
    refused: list[str] = []
    for budget in BUDGETS:
        with pair(tmp_path, "qwen3_moe", budget, torch.bfloat16, weights_format=format_) as both, torch.no_grad():
            weight = both.streamed.model.layers[0].self_attn.q_proj.weight
            before = weight.clone()
            try:
                weight.data[:2] = 0
                weight.T.mul_(2)
            except penstock.BudgetTooSmall:
                refused.append(budget)
                continue
            before[:2] = 0
            assert torch.equal(both.streamed.model.layers[0].self_attn.q_proj.weight.clone(), 2 * before)
            state = torch.randn(1, 64).bfloat16()
            found = both.streamed.model.layers[0].self_attn.q_proj(state)
            assert torch.equal(found, nn.functional.linear(state, 2 * before))
    assert not {*refused} & {"elastic", "ample"}


@pytest.mark.parametrize("budget", ["least", "ample"])
@pytest.mark.parametrize("form", ["int8", "stacked", "lossless"])
def test_a_packed_weight_that_modules_share_stays_one(form: str, budget: str, tmp_path: Path) -> None:
    with pair(tmp_path, "llama", budget, torch.bfloat16, tie_word_embeddings=True, weights_format=form) as both:
        names = [name for name, _ in both.plain.named_parameters()]
        for wanted in (False, True):
            both.streamed.requires_grad_(wanted)
            assert [name for name, _ in both.streamed.named_parameters()] == names
            assert both.streamed.lm_head.weight is both.streamed.model.embed_tokens.weight
            assert both.streamed.lm_head.weight.requires_grad == wanted
