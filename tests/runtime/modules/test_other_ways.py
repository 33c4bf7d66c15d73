"""Whatever somebody changes about how layers compute: a bfloat16 model, whose layers have our products, follows."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.qwen2 import modeling_qwen2
from transformers.pytorch_utils import Conv1D

import penstock
from tests.support.pairs import IDS, Pair, pair
from tests.support.tiny_models import save_tiny

Change = Callable[[PreTrainedModel], AbstractContextManager[None]]


def a_layer(model: PreTrainedModel) -> Any:
    """One with a bias."""
    inner = model.base_model
    return inner.h[1].mlp.c_fc if hasattr(inner, "h") else inner.layers[1].self_attn.q_proj


class Twice(nn.Module):
    """A parametrisation."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return 2 * numbers


@contextmanager
def a_parametrised_bias(model: PreTrainedModel) -> Iterator[None]:
    parametrize.register_parametrization(a_layer(model), "bias", Twice())
    yield


@contextmanager
def a_bias_in_a_buffer(model: PreTrainedModel) -> Iterator[None]:
    layer = a_layer(model)
    bias = layer.bias.detach().clone() * 3 + 1
    del layer.bias
    layer.register_buffer("bias", bias)
    yield


@contextmanager
def a_bias_that_is_a_tensor(model: PreTrainedModel) -> Iterator[None]:
    layer = a_layer(model)
    bias = layer.bias.detach().clone() * 3 + 1
    del layer.bias
    layer.bias = bias
    yield


@contextmanager
def another_class(model: PreTrainedModel) -> Iterator[None]:
    layer = a_layer(model)
    made: Any = type(layer)
    layer.__class__ = type("Other", (made,), {"forward": lambda self, input: 2 * made.forward(self, input)})
    yield


@contextmanager
def another_function(model: PreTrainedModel) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        linear, addmm = functional.linear, torch.addmm
        patch.setattr(functional, "linear", lambda *args, **kwargs: 2 * linear(*args, **kwargs))
        patch.setattr(torch, "addmm", lambda *args, **kwargs: 2 * addmm(*args, **kwargs))
        yield


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return 2 * out if func in (functional.linear, torch.addmm) else out


@contextmanager
def a_mode_of_functions(model: PreTrainedModel) -> Iterator[None]:
    with Functions():
        yield


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return 2 * out if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) else out


@contextmanager
def a_mode_of_operations(model: PreTrainedModel) -> Iterator[None]:
    with Operations():
        yield


class Marked(torch.Tensor):
    """A tensor with products of its own."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * out if func in (functional.linear, torch.addmm) else out


@contextmanager
def an_input_with_products_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    a_layer(model).register_forward_pre_hook(lambda module, given: given[0].as_subclass(Marked))
    a_layer(model).register_forward_hook(lambda module, given, out: out.as_subclass(torch.Tensor))
    yield


CHANGES: list[Change] = [
    *(a_parametrised_bias, a_bias_in_a_buffer, a_bias_that_is_a_tensor, another_class, another_function),
    *(a_mode_of_functions, a_mode_of_operations, an_input_with_products_of_its_own),
]


@contextmanager
def positions_apart(model: PreTrainedModel) -> Iterator[None]:
    def divide(module: nn.Module, given: Any, out: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        both = torch.stack(out, -1)
        return both[..., 1], both[..., 0]

    model.model.rotary_emb.register_forward_hook(divide)
    yield


@contextmanager
def changed_code(model: PreTrainedModel) -> Iterator[None]:
    def rotate_half(x: torch.Tensor) -> torch.Tensor:
        return x

    function: Any = modeling_qwen2.rotate_half
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, "__code__", rotate_half.__code__)
        yield


def tokens(model: PreTrainedModel, change: Change | None = None) -> list[torch.Tensor]:
    """Logits of one token, of two rows of one, and of a prompt and the token behind it."""
    with torch.no_grad():
        if change is not None:
            with change(model):
                return tokens(model)
        first = model(IDS[:1], use_cache=True)
        second = model(IDS[1:, :1], past_key_values=first.past_key_values)
        return [model(IDS[:1, :1]).logits, model(IDS[:, :1]).logits, first.logits, second.logits]


def check(both: Pair, change: Change) -> None:
    before = tokens(both.plain)
    assert all(map(torch.equal, before, tokens(both.streamed)))
    wanted = tokens(both.plain, change)
    assert not torch.equal(before[-1], wanted[-1]), "nothing is changed"
    for number, (expected, found) in enumerate(zip(wanted, tokens(both.streamed, change), strict=True)):
        assert torch.equal(expected, found), f"number {number}"


@pytest.mark.parametrize("budget", ["half", "elastic", "ample"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_products_follow_a_change(change: Change, budget: str, tmp_path: Path) -> None:
    for name in ("qwen2", "gpt2"):
        with pair(tmp_path / name, name, budget, torch.bfloat16) as both:
            check(both, change)


@pytest.mark.parametrize("change", [positions_apart, changed_code], ids=lambda change: change.__name__)
def test_positions_follow_a_change(change: Change, tmp_path: Path) -> None:
    with pair(tmp_path, "qwen2", "ample", torch.bfloat16) as both:
        check(both, change)


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_a_forward_that_was_set_before_wrapping_is_kept(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "model", torch.bfloat16)
    wanted, found = (AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval() for _ in "12")
    for model in (wanted, found):
        layer = a_layer(model)
        layer.forward = lambda input, layer=layer: 2 * type(layer).forward(layer, input)
    assert isinstance(a_layer(wanted), nn.Linear | Conv1D)
    options: dict[str, Any] = {"host_memory": "1GiB", "host_memory_floor": "1GiB"}
    with penstock.wrap(found, store=tmp_path / "store", **options) as found:
        assert all(map(torch.equal, tokens(wanted), tokens(found)))
