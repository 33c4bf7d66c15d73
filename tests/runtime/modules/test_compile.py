"""``torch.compile`` of a streamed model: the model computes as it does without."""

import warnings
from pathlib import Path

import pytest
import torch

from tests.support.pairs import IDS, pair


@pytest.mark.parametrize("budget", ["least", "elastic", "ample"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_model_gives_the_same_bits(backend: str, budget: str, tmp_path: Path) -> None:
    for name in ("llama", "qwen3", "qwen3_moe"):
        with pair(tmp_path / name, name, budget) as both, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(both.streamed, backend=backend)
            for ids in (IDS, IDS[:, :1], IDS):
                assert torch.equal(compiled(ids).logits, both.plain(ids).logits), name
            if budget == "ample":  # nothing is leased, so that parts of the model are compiled as torch does
                continue
            inner = torch.compile(both.streamed.model, backend=backend)
            assert torch.equal(inner(IDS).last_hidden_state, both.plain.model(IDS).last_hidden_state), name
            states = torch.randn(1, 3, 64)
            for plain, streamed in zip(both.plain.model.layers, both.streamed.model.layers, strict=True):
                module = torch.compile(streamed.self_attn.q_proj, backend=backend)
                assert torch.equal(module(states), plain.self_attn.q_proj(states)), name
            both.streamed.model.compile(backend=backend)
            assert both.same_logits(), name


def test_a_whole_graph_is_refused(tmp_path: Path) -> None:
    with pair(tmp_path, "llama") as both, pytest.raises(RuntimeError, match="fullgraph=True"):
        torch.compile(both.streamed, fullgraph=True, backend="eager")(IDS)
