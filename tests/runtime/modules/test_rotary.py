"""Rotary positions in attention modules: one call with the function's bits, unless somebody computes in another way."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from penstock.kernels.modules.rotary import Rotary
from penstock.kernels.native import KERNELS
from penstock.runtime.modules.class_forward import own_forward
from penstock.runtime.modules.rotary import rotary

native = pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")
CONFIG = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96)
CONFIG._attn_implementation = "sdpa"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each call that our kernel computed."""
    found: list[int] = []
    kernel = Rotary.__call__

    def computed(self: Rotary, *args: Any) -> Any:
        found.append(1)
        return kernel(self, *args)

    monkeypatch.setattr(Rotary, "__call__", computed)
    return found


class Case:
    """An attention module with our forward, and what it is called with."""

    def __init__(self, kind: type[nn.Module] = LlamaAttention, tokens: int = 1) -> None:
        torch.manual_seed(0)
        self.module = kind(CONFIG, 0).bfloat16()
        forward = rotary(self.module, own_forward(self.module))
        assert forward is not None
        self.module.forward = forward
        self.args: dict[str, Any] = {
            "hidden_states": torch.randn(1, tokens, 64).bfloat16(),
            "position_embeddings": (torch.randn(1, tokens, 16).bfloat16(), torch.randn(1, tokens, 16).bfloat16()),
            "attention_mask": None,
        }

    def __call__(self, **changed: Any) -> torch.Tensor:
        return self.module(**self.args | changed)[0]  # type: ignore[no-any-return]

    def agrees(self) -> bool:
        """Whether the result is that of the class."""
        return torch.equal(self(), type(self.module).forward(self.module, **self.args)[0])


@native
def test_the_bits_of_the_class(calls: list[int]) -> None:
    with torch.no_grad():
        case = Case()
        case()  # the trial
        calls.clear()
        assert case.agrees()
        assert len(calls) == 1


@native
def test_several_tokens_are_left_to_the_class(calls: list[int]) -> None:
    with torch.no_grad():
        assert Case(tokens=3).agrees()
    assert not calls


def negated(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return -args[0], args[1]


@native
@pytest.mark.parametrize("name", ["apply_rotary_pos_emb", "rotate_half", "eager_attention_forward"])
def test_functions_of_the_file_that_somebody_replaces(
    name: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    others: dict[str, Callable[..., Any]] = {
        "apply_rotary_pos_emb": negated,
        "rotate_half": lambda x: x,
        "eager_attention_forward": lambda *_, **__: None,
    }
    with torch.no_grad():
        case = Case()
        before = case()
        calls.clear()
        monkeypatch.setattr(modeling_llama, name, others[name])
        assert case.agrees()
        assert not calls
        monkeypatch.undo()
        assert torch.equal(case(), before)


@native
def test_a_forward_that_somebody_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, hidden_states, **_: (hidden_states + 1, None))
    assert torch.equal(case(), case.args["hidden_states"] + 1)


@native
def test_gradients_autocast_and_other_kinds_of_tensors(calls: list[int]) -> None:
    class Own(torch.Tensor):
        pass

    case = Case()
    with torch.no_grad():
        case()
        calls.clear()
        with torch.autocast("cpu", dtype=torch.float16):
            case()
        own = tuple(each.as_subclass(Own) for each in case.args["position_embeddings"])
        case(position_embeddings=own)
    case().sum().backward()
    assert case.module.k_proj.weight.grad is not None
    assert not calls


def test_modules_that_call_no_such_function() -> None:
    class OfAUser(LlamaAttention):  # type: ignore[misc]
        pass

    replaced = LlamaAttention(CONFIG, 0)
    replaced.forward = lambda *_, **__: None
    for module in (OfAUser(CONFIG, 0), LlamaMLP(CONFIG), nn.Linear(8, 8), replaced):
        assert rotary(module, own_forward(module)) is None


class Counted:
    """Somebody's function that computes the same, and does something else besides."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)

    def wrapped(self) -> Callable[..., Any]:
        """The same as a function that looks like the one that it calls."""

        @functools.wraps(self.function)
        def function(*args: Any) -> Any:
            return self(*args)

        return function


@native
@pytest.mark.parametrize("name", ["apply_rotary_pos_emb", "rotate_half"])
@pytest.mark.parametrize("looks_alike", [True, False])
def test_functions_that_were_replaced_before(name: str, looks_alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(vars(modeling_llama)[name])
    monkeypatch.setattr(modeling_llama, name, counted.wrapped() if looks_alike else counted)
    module = LlamaAttention(CONFIG, 0)
    assert rotary(module, own_forward(module)) is None


@native
def test_a_forward_that_was_replaced_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaAttention, "forward", Counted(LlamaAttention.forward).wrapped())
    module = LlamaAttention(CONFIG, 0)
    assert rotary(module, own_forward(module)) is None
