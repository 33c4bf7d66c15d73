"""Guesses of the next layer's experts: made, used, and never part of the result."""

from pathlib import Path

import pytest
import torch

import penstock
from penstock.runtime.experts.experts import streamed_experts
from penstock.runtime.routing.router import predict_with
from tests.support.engines import engine_of
from tests.support.logits import least_budget, logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_router_is_found_and_says_what_it_will(
    tiny_moe_folder: Path, store: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with penstock.load(tiny_moe_folder, store=store, host_memory="1GiB", dtype=dtype) as model:
        path = next(name for name, module in model.named_modules() if streamed_experts(module))
        guess = predict_with(model, path)
        assert guess is not None
        router = model.get_submodule(path.rpartition(".")[0]).gate
        hidden = torch.randn(3, model.config.hidden_size, dtype=model.dtype)
        with torch.no_grad():
            wanted = router(hidden)[0].topk(2, dim=-1).indices
        assert guess.experts(hidden, 2) == sorted(set(wanted.flatten().tolist()))
        assert guess.experts(hidden[:1], 2) == wanted[0].tolist()
        many = torch.randn(40, model.config.hidden_size, dtype=model.dtype)
        with torch.no_grad():
            votes = router(many)[0].topk(2, dim=-1).indices.flatten().bincount(minlength=model.config.num_experts)
        middle = int(votes.median())
        monkeypatch.setattr("penstock.runtime.routing.router._VOTES", middle)
        assert guess.experts(many, 2) == [expert for expert, count in enumerate(votes.tolist()) if count >= middle]


def test_guessing_changes_no_bit_and_is_counted(tiny_moe_folder: Path, store: Path) -> None:
    budget = least_budget(tiny_moe_folder, store)
    found, stats = [], []
    for prefetch in ("off", "auto"):
        with penstock.load(
            tiny_moe_folder, store=store, host_memory=2 * budget, experts_prefetch=prefetch, attn_implementation="eager"
        ) as model:
            found.append(logits(model, steps=12))
            engine_of(model).check_integrity()
            stats.append(model.penstock.stats())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert stats[0].guess_bytes == 0
    assert stats[1].guess_bytes >= stats[1].guess_bytes_used > 0
