"""Norms in modules: one call with the bits of the module's class, unless somebody computes in another way."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from penstock.kernels.modules.rms_norm import RMSNorm
from penstock.kernels.native import KERNELS
from penstock.runtime.modules.class_forward import own_forward
from penstock.runtime.modules.rms_norm import rms_norm

native = pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")
CLASSES: tuple[type[nn.Module], ...] = (LlamaRMSNorm, Gemma3RMSNorm, GptOssRMSNorm)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each norm that our kernel computed."""
    found: list[int] = []
    kernel = RMSNorm.__call__

    def computed(self: RMSNorm, *args: Any) -> torch.Tensor:
        found.append(1)
        return kernel(self, *args)

    monkeypatch.setattr(RMSNorm, "__call__", computed)
    return found


def made(kind: type[nn.Module], width: int, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    module = kind(width)
    nn.init.normal_(module._parameters["weight"])  # type: ignore[arg-type]
    return module.to(dtype)


def given(module: nn.Module) -> nn.Module:
    """``module`` with our forward."""
    forward = rms_norm(module, own_forward(module))
    assert forward is not None
    module.forward = forward
    return module


@native
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_bits_of_the_class(kind: type[nn.Module], dtype: torch.dtype, calls: list[int]) -> None:
    module = given(made(kind, 96, dtype))
    with torch.no_grad():
        module(torch.ones(1, 96, dtype=dtype))  # the trial
        calls.clear()
        for shape in ((1, 1, 96), (1, 5, 4, 96), (96,)):
            state = torch.randn(shape).to(dtype) * 3
            assert torch.equal(module(state), kind.forward(module, state))
    assert len(calls) == 3


@native
def test_an_epsilon_that_somebody_changes_counts() -> None:
    module = given(made(LlamaRMSNorm, 64))
    state = torch.randn(3, 64).bfloat16() / 100
    with torch.no_grad():
        before = module(state)
        module.variance_epsilon = 0.5
        assert torch.equal(module(state), LlamaRMSNorm.forward(module, state))
        assert not torch.equal(module(state), before)


@native
def test_what_is_left_to_the_class(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    module = given(made(LlamaRMSNorm, 64))
    state = torch.randn(3, 64).bfloat16()
    with torch.no_grad():
        module(state)
        calls.clear()
        left = (state.float(), torch.randn(64, 3).bfloat16().T, torch.randn(512, 64).bfloat16(), state.as_subclass(Own))
        for other in left:
            assert torch.equal(module(other), LlamaRMSNorm.forward(module, other))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            module(state)
        monkeypatch.setattr(LlamaRMSNorm, "forward", lambda self, hidden: hidden + 1)
        assert torch.equal(module(state), state + 1)
        monkeypatch.undo()
    assert module(state).requires_grad
    assert not calls


class Own(torch.Tensor):
    """Somebody's own kind of tensor."""


def test_modules_that_are_no_such_norm() -> None:
    class OfAUser(LlamaRMSNorm):  # type: ignore[misc]
        pass

    replaced = made(LlamaRMSNorm, 64)
    replaced.forward = lambda state: state
    others = (nn.LayerNorm(64), nn.RMSNorm(64), OfAUser(64), Qwen3NextRMSNormGated(64), nn.Linear(8, 8), replaced)
    for module in others[2:3] + others[4:] + others[:2]:
        assert rms_norm(module, own_forward(module)) is None


@native
def test_a_norm_with_a_gate_keeps_its_forward(calls: list[int]) -> None:
    """It looks like one until it is called: its forward takes two tensors."""
    module = made(Qwen3NextRMSNormGated, 64)
    forward = rms_norm(module, own_forward(module))
    if forward is not None:
        module.forward = forward
    state, gate = torch.randn(2, 1, 64).bfloat16()
    with torch.no_grad():
        assert torch.equal(module(state, gate), Qwen3NextRMSNormGated.forward(module, state, gate))
    assert not calls
