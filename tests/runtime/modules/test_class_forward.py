"""A forward that somebody replaces on a class after loading is the one that computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP

from tests.support.pairs import BUDGETS, pair


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.Linear, LlamaMLP, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM])
def test_it_computes(
    kind: type[nn.Module], dtype: torch.dtype, budget: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, called = kind.forward, []

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        called.append(self)
        out = before(self, *args, **kwargs)
        if isinstance(out, torch.Tensor):
            return out * 2
        return (out[0] * 2, *out[1:]) if isinstance(out, tuple) else out

    with pair(tmp_path, "llama", budget, dtype) as both:
        unchanged = both.plain(torch.tensor([[5, 6, 7]])).logits
        monkeypatch.setattr(kind, "forward", forward)
        assert both.same_logits()
        of_both = [{*map(id, called)} & {*map(id, model.modules())} for model in both]
        assert len(of_both[0]) == len(of_both[1]) > 0
        monkeypatch.undo()
        assert torch.equal(both.streamed(torch.tensor([[5, 6, 7]])).logits, unchanged)
