"""Models on an emulated device: experts that are not there are copied or computed by the CPU; memory that runs out."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from penstock.runtime.experts.tier_experts import TierExperts
from penstock.tiering.policy.miss_costs import MissCosts
from tests.support.engines import engine_of
from tests.support.logits import logits
from tests.support.tiny_models import EXPERT_NAMES, save_tiny

OPTIONS: dict[str, Any] = {"attn_implementation": "eager", "device": "emulated"}


def least(folder: Path, store: Path, **budgets: object) -> int:
    """The least of the one budget that is 1 in ``budgets``."""
    with pytest.raises(penstock.BudgetTooSmall, match=r"at least (\d+)") as caught:
        penstock.load(folder, store=store, **OPTIONS, **budgets)
    return int(re.findall(r"at least (\d+)", str(caught.value))[0])


def tight(folder: Path, store: Path) -> dict[str, int]:
    """The least that the model runs with."""
    device = least(folder, store, device_memory=1, host_memory="1GiB")
    return {"device_memory": device, "host_memory": least(folder, store, device_memory=device, host_memory=1)}


def expected_of(folder: Path) -> list[torch.Tensor]:
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return logits(AutoModelForCausalLM.from_pretrained(folder, **options).eval())


def same(model: PreTrainedModel, expected: list[torch.Tensor]) -> bool:
    found = logits(model)
    engine_of(model).check_integrity()
    engine_of(model).host.check_integrity()
    return all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", EXPERT_NAMES)
def test_no_bit_depends_on_where_experts_are_computed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = save_tiny(name, tmp_path / "model", torch.bfloat16), tmp_path / "store"
    expected, budgets = expected_of(folder), tight(folder, store)
    some = lambda self, misses, **_: frozenset(miss.expert for miss in misses[::2])  # noqa: E731
    for below in (some, MissCosts.choose_for_cpu):
        monkeypatch.setattr(MissCosts, "choose_for_cpu", below)
        with penstock.load(folder, store=store, experts_misses="auto", **OPTIONS, **budgets) as model:
            assert same(model, expected)
            assert same(model, expected), "with each kind of experts tried"
            stats = model.penstock.stats()
        assert stats.expert_misses > stats.misses_computed
        assert stats.misses_computed > 0
    with penstock.load(folder, store=store, **OPTIONS, **budgets) as model:
        assert same(model, expected)
        assert model.penstock.stats().misses_computed == 0, "only where it is asked for"


def test_without_our_own_products_bits_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device computes with that the CPU's products cannot be used on."""
    monkeypatch.setattr("penstock.runtime.tiers.compute_tier.ComputeTier.native", False)
    experts = ["tier_experts.compute_outputs", "fast.add_weighted", "fast.sum_weighted"]
    modules = ["model_forward.trim", "attach.few_rows", "attach.fast_weight", "attach.in_parts"]
    for name in [*(f"experts.{each}" for each in experts), *(f"modules.{each}" for each in modules)]:
        monkeypatch.delattr(f"penstock.runtime.{name}")
    for name in ("qwen3_moe", "gpt_oss", "llama"):
        folder, store = save_tiny(name, tmp_path / name, torch.bfloat16), tmp_path / "store"
        with penstock.load(folder, store=store, **OPTIONS, **tight(folder, store)) as model:
            assert same(model, expected_of(folder))


def test_on_another_device_than_the_cpu_bits_are_its_own(tmp_path: Path) -> None:
    """One whose tensors do not mix with others, in a process of its own: weights, buffers, rows of embeddings, experts
    that are copied and experts that the CPU computes."""
    names = ["gemma3_text", "qwen3_moe"]
    child = [
        sys.executable,
        Path(__file__).parents[3] / "support" / "pretend_child.py",
        tmp_path,
        "auto",
        "bfloat16",
        *names,
    ]
    out = subprocess.run(list(map(str, child)), stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout
    found = {one.pop("name"): one for one in map(json.loads, out.splitlines())}
    assert list(found) == names
    for one in found.values():
        assert one["equal"]
        assert one["misplaced"] == [], "also when it is closed"
        assert one["stays"]
        assert one["by_row"] == 1
    assert found["qwen3_moe"]["copied"] > 0
    assert found["qwen3_moe"]["computed"] > 0


def test_a_device_must_be_named_for_its_misses(tiny_moe_folder: Path, store: Path) -> None:
    with pytest.raises(penstock.ConfigError, match=r"misses = .auto. is for a device"):
        penstock.load(tiny_moe_folder, store=store, experts_misses="auto")


@pytest.mark.parametrize("at", ["self_attn", "mlp.experts", "mlp.gate"])
@pytest.mark.parametrize("misses", ["copy", "auto"])
def test_memory_that_runs_out_is_one_error_and_the_next_forward_is_right(
    at: str, misses: str, tiny_moe_folder: Path, store: Path
) -> None:
    expected = expected_of(tiny_moe_folder)
    budgets = tight(tiny_moe_folder, store)
    with penstock.load(tiny_moe_folder, store=store, experts_misses=misses, **OPTIONS, **budgets) as model:
        first = model(torch.tensor([[5, 6, 7]])).logits

        def fail(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

        for register in ("register_forward_pre_hook", "register_forward_hook"):
            hook = getattr(model.get_submodule(f"model.layers.1.{at}"), register)(fail)
            with pytest.raises(
                penstock.DeviceFull, match=r"weights have .*free; lower device_memory.*2.00 GiB"
            ) as full:
                model(torch.tensor([[5, 6, 7]]))
            assert full.value.__cause__.__traceback__ is None, "its frames hold what was computed"
            hook.remove()
            for bridge in (engine_of(model).bridge, engine_of(model).host):
                bridge.check_integrity()
                assert not bridge._planner.residency.held(threading.get_ident())
            assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, first)
        assert same(model, expected)


def test_what_the_cpu_held_for_experts_is_given_back_too(
    tiny_moe_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = tight(tiny_moe_folder, store)
    monkeypatch.setattr(
        MissCosts, "choose_for_cpu", lambda self, misses, **_: frozenset(miss.expert for miss in misses)
    )
    with penstock.load(tiny_moe_folder, store=store, experts_misses="auto", **OPTIONS, **budgets) as model:
        first, host = logits(model), engine_of(model).host

        def fail(self: TierExperts, *_: object) -> None:
            assert self.bridge is not host or host._planner.residency.held(threading.get_ident())
            raise torch.OutOfMemoryError("none")

        with monkeypatch.context() as patch:
            patch.setattr(TierExperts, "outputs", fail)
            with pytest.raises(penstock.DeviceFull):
                logits(model)
        assert not host._planner.residency.held(threading.get_ident())
        assert same(model, first)


def test_without_a_device_it_is_torchs_error(tiny_moe_folder: Path, store: Path) -> None:
    with penstock.load(tiny_moe_folder, store=store, host_memory="1GiB") as model:

        def fail(*_: object) -> None:
            raise torch.OutOfMemoryError("none")

        model.model.layers[0].register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            model(torch.tensor([[5]]))
