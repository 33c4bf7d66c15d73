"""Modules that do not keep to the custom of using their weights in their own forward, and only there."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

import penstock
from penstock.runtime.modules.scopes import Leased, Slots
from penstock.runtime.modules.streamed import StreamedModule
from penstock.tiering.units import BlockId
from tests.support.engines import engine_of
from tests.support.logits import least_budget, logits


class Reaching(LlamaMLP):
    """Reaches for its children's weights instead of calling them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = functional.linear(x, self.gate_proj.weight)
        return functional.linear(self.act_fn(gate) * functional.linear(x, self.up_proj.weight), self.down_proj.weight)


class Positions(nn.Module):
    """Gives away a view on its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(256, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight[: x.shape[1]]


class Shifted(nn.Module):
    """Uses what ``Positions`` gave away after other weights have been read."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.positions, self.inner = Positions(), inner

    def forward(self, x: torch.Tensor) -> Any:
        shift = self.positions(x)
        return self.inner(x) + shift


@pytest.fixture
def built(tiny_dense_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_dense_folder, attn_implementation="eager").eval()


def reach(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.mlp.__class__ = Reaching


def test_weights_used_outside_of_their_module_are_leased_for_the_layer(
    built: PreTrainedModel, tiny_dense_folder: Path, store: Path
) -> None:
    reach(built)
    expected = logits(built)
    # The least budget streams the output layer, in whose room all three weights of an MLP fit together.
    with penstock.wrap(built, store=store, host_memory=least_budget(tiny_dense_folder, store)) as model:
        assert any("mlp" in block.module for block in model.penstock.placement.streamed)
        assert all(torch.equal(a, b) for a, b in zip(expected, logits(model), strict=True))
        engine_of(model).check_integrity()


def test_weights_used_outside_of_their_module_need_room_for_one_at_a_time(built: PreTrainedModel, store: Path) -> None:
    reach(built)
    expected = logits(built)
    # More memory, but put to use by pinning: what streams passes through room for two weights.
    with penstock.wrap(built, store=store, host_memory=280_000) as model:
        assert all(torch.equal(a, b) for a, b in zip(expected, logits(model), strict=True))
        engine_of(model).check_integrity()


def test_a_view_on_streamed_weights_is_copied_before_they_go(built: PreTrainedModel, store: Path) -> None:
    torch.manual_seed(0)
    for layer in built.model.layers:
        layer.mlp = Shifted(layer.mlp)
    expected = logits(built)
    with penstock.wrap(built, store=store, host_memory=250_000) as model:
        assert any("positions" in block.module for block in model.penstock.placement.streamed)
        assert all(torch.equal(a, b) for a, b in zip(expected, logits(model), strict=True))


def test_looking_at_weights_outside_of_a_forward_leases_nothing(built: PreTrainedModel, store: Path) -> None:
    with penstock.wrap(built, store=store, host_memory=250_000) as model:
        weight = model.model.layers[0].mlp.gate_proj.weight
        assert (weight.device.type, weight.dtype, tuple(weight.shape)) == ("cpu", torch.float32, (96, 64))
        assert model.num_parameters() > 50_000
        assert model.device.type == "cpu"


def test_a_layer_in_memory_takes_one_lease(
    tiny_dense_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = least_budget(tiny_dense_folder, store)
    with penstock.load(tiny_dense_folder, store=store, host_memory="1GiB", host_memory_floor=floor) as model:
        planner = engine_of(model).bridge._planner
        asked: list[tuple[str, ...]] = []
        use = planner._use

        def counted(stream: int, blocks: Sequence[BlockId]) -> list[list[BlockId]]:
            asked.append(tuple(block.module for block in blocks))
            return use(stream, blocks)

        monkeypatch.setattr(planner, "_use", counted)
        with torch.no_grad():
            model(torch.tensor([[5, 17, 101]]))
        assert engine_of(model).elastic
        layers = [modules for modules in asked if any(".layers." in module for module in modules)]
        assert len(layers) == model.config.num_hidden_layers
        assert all(len(modules) > 3 for modules in layers)


def test_closing_gives_the_memory_back_while_the_model_is_there(tiny_moe_folder: Path, store: Path) -> None:
    model = penstock.load(tiny_moe_folder, store=store, host_memory="1GiB")
    with torch.no_grad():
        model(torch.tensor([[5, 17, 101]]))
    memory = weakref.ref(engine_of(model).tier.arena._map)
    model.penstock.close()
    gc.collect()
    assert memory() is None
    assert model.config.model_type


@pytest.fixture
def in_memory(tiny_dense_folder: Path, store: Path) -> Iterator[PreTrainedModel]:
    """A model whose layers have one lease each, and keep their weights while they may."""
    options = {"host_memory": "1GiB", "host_memory_floor": least_budget(tiny_dense_folder, store)}
    with penstock.load(tiny_dense_folder, store=store, **options) as model:
        yield model


def test_weights_of_a_layer_are_looked_up_once(in_memory: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(in_memory)
    looked: list[StreamedModule] = []
    look = StreamedModule.lease_of

    def counted(module: StreamedModule, slots: Slots) -> Leased:
        looked.append(module)
        return look(module, slots)

    monkeypatch.setattr(StreamedModule, "lease_of", counted)
    assert all(torch.equal(a, b) for a, b in zip(expected, logits(in_memory), strict=True))
    assert not any(".layers." in block.module for module in looked for block in module.blocks)


@pytest.mark.parametrize("back", [False, True])
def test_a_weight_that_is_replaced_while_its_layer_is_leased(
    back: bool, in_memory: PreTrainedModel, tiny_dense_folder: Path
) -> None:
    built = AutoModelForCausalLM.from_pretrained(tiny_dense_folder, attn_implementation="eager").eval()
    in_memory.config._attn_implementation = "eager"
    logits(in_memory)
    for model in (built, in_memory):
        projection = model.model.layers[1].mlp.up_proj
        own, other = projection.weight, nn.Parameter(torch.full(projection.weight.shape, 0.25))

        def replace(module: nn.Module, _: object, projection: Any = projection, new: Any = other) -> None:
            projection.weight = new

        def restore(module: nn.Module, _: object, __: object, projection: Any = projection, old: Any = own) -> None:
            projection.weight = old

        model.model.layers[1].self_attn.register_forward_pre_hook(replace)
        if back:
            model.model.layers[1].mlp.gate_proj.register_forward_hook(restore)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(logits(built), logits(in_memory), strict=True))
