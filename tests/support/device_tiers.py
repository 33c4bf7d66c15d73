"""Models in three tiers, for tests: loaded on an emulated device, in budgets that are too small for all of it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from tests.support.engines import engine_of
from tests.support.logits import logits


def least(folder: Path, store: Path, **options: Any) -> int:
    """The least bytes of the tier that has one byte too few in ``options``, as the refusal says."""
    with pytest.raises(penstock.BudgetTooSmall) as refused:
        on_device(folder, store, **options)
    found = re.search(r"set (device|host)_memory to at least (\d+) bytes", str(refused.value))
    assert found, refused.value
    assert options[f"{found[1]}_memory"] == 1, "the other tier was named"
    return int(found[2])


def on_device(folder: Path, store: Path, **options: Any) -> PreTrainedModel:
    return penstock.load(folder, store=store, **{"device": "emulated", "attn_implementation": "eager"} | options)


def tight(folder: Path, store: Path, device: float = 0.0, host: float = 0.0, **options: Any) -> PreTrainedModel:
    """With these shares of the model's bytes on the device and in host memory, or the least that do."""
    floor = least(folder, store, device_memory=1, host_memory="1GiB", **options)
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    room = max(int(device * total), floor)
    under = least(folder, store, device_memory=room, host_memory=1, **options)
    return on_device(folder, store, device_memory=room, host_memory=max(int(host * total), under), **options)


def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def check(model: PreTrainedModel) -> None:
    """Both tiers' accounts balance, and neither has more than its budget."""
    engine = engine_of(model)
    engine.bridge.check_integrity()
    engine.host.check_integrity()
    for bridge, placement in ((engine.bridge, engine.tier.placement), (engine.host, engine.host_placement)):
        aside = placement.row_cache_bytes + placement.scratch_bytes
        assert bridge.resident_bytes() + aside <= placement.host_bytes <= placement.budget
    assert engine.tier.arena.length + engine.tier.placement.scratch_bytes <= max(4096, engine.tier.placement.budget)
    assert engine.host_tier.arena.length <= max(4096, engine.host_placement.budget)


def equal(expected: list[torch.Tensor], model: PreTrainedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(expected, logits(model), strict=True))
