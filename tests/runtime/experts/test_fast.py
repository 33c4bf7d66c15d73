"""One token whose experts are all in memory takes one call, with transformers' bits; others go the longer way."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from penstock.kernels.native import KERNELS
from penstock.runtime.experts.fast import FastExperts
from tests.support.logits import least_budget
from tests.support.pairs import pair
from tests.support.tiny_models import save_tiny

pytestmark = pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")
IDS = torch.randint(3, 300, (1, 12), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 128, "moe_intermediate_size": 64, "num_experts_per_tok": 4}
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("moe") / "model", torch.bfloat16, **sizes)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each token and layer whether one call computed all experts."""
    found: list[bool] = []
    way = FastExperts._run_token

    def run(self: FastExperts, *args: Any) -> torch.Tensor | None:
        out = way(self, *args)
        found.append(out is not None)
        held = self._bridge._planner.residency.held(threading.get_ident())
        assert not any(block.kind == "expert" for block in held), "leases that nobody gives back"
        return out

    monkeypatch.setattr(FastExperts, "_run_token", run)
    return found


def decoded(model: Any) -> list[torch.Tensor]:
    """Logits of one token after the other."""
    found, past = [], None
    with torch.no_grad():
        for token in IDS[0]:
            out = model(token.view(1, 1), past_key_values=past, use_cache=True)
            past, found = out.past_key_values, [*found, out.logits]
    return found


@pytest.mark.parametrize("memory", ["ample", "least"])
def test_the_bits_of_transformers(memory: str, folder: Path, tmp_path: Path, calls: list[bool]) -> None:
    options: dict[str, Any] = {"store": tmp_path / "store", "weights_format": "as-is"}
    budget = least_budget(folder, **options) if memory == "least" else "64MiB"
    with penstock.load(folder, host_memory=budget, **options) as model:
        found = decoded(model)
        hits = model.penstock.stats().expert_hits
    eager = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, experts_implementation="eager")
    wanted = decoded(eager.eval())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
    assert any(calls) if memory == "ample" else not all(calls)
    assert hits > 0


@pytest.mark.parametrize("budget", ["least", "ample"])
def test_an_expert_may_be_chosen_twice_for_a_token(budget: str, tmp_path: Path) -> None:
    def choose(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, chosen, weights = given
        return hidden, chosen[:, :1].expand_as(chosen).contiguous(), weights

    with pair(tmp_path, "qwen3_moe", budget, torch.bfloat16) as both:
        before = both.plain(IDS[:1, :1]).logits
        for model in both:
            model.model.layers[1].mlp.experts.register_forward_pre_hook(choose)
        assert not torch.equal(both.plain(IDS[:1, :1]).logits, before)
        assert all(both.same_logits(ids) for ids in (IDS[:, :1], IDS))
