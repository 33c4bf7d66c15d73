"""Adapters of PEFT and stored prompts: each adapter has its own, whatever its name, and the model without them has its
own too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from penstock.runtime.prefixes import prefix
from tests.support.kept_prompts import PROMPT
from tests.support.tiny_models import save_tiny

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("adapted") / "llama")


@pytest.fixture(autouse=True)
def always_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a model computes faster than any drive reads."""
    monkeypatch.setattr(prefix, "worth_reading", lambda *_, **__: True)


def add(model: Any, name: str, seed: int, **options: Any) -> None:
    """Add an adapter with random weights to ``model``."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], **options)
    model.add_adapter(config, name)
    chance = torch.Generator().manual_seed(seed)
    for path, weight in model.named_parameters():
        if f".{name}." in path:
            weight.data.normal_(0, 0.3, generator=chance)
    model.eval()


def adapted(folder: Path, **seeds: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, seed in seeds.items():
        add(model, name, seed)
    return model


def text(model: Any) -> list[int]:
    found: list[int] = model.generate(PROMPT, max_new_tokens=6, do_sample=False)[0, PROMPT.shape[1] :].tolist()
    if hasattr(model, "penstock"):
        model.penstock.prefixes.flush()
    return found


def hits(model: Any) -> int:
    return int(model.penstock.stats().prefix_hits)


@pytest.fixture
def both(llama: Path, tmp_path: Path) -> Iterator[Any]:
    """A model with the adapters a and b, of which b is active."""
    with penstock.wrap(
        adapted(llama, a=3, b=4), store=tmp_path / "store", host_memory="64MiB", kv_prefix="16MiB"
    ) as model:
        yield model


def test_each_adapter_has_prompts_of_its_own(both: Any, llama: Path) -> None:
    truth = adapted(llama, a=3, b=4)
    wanted = {}
    for name in ("a", "b"):
        truth.set_adapter(name)
        wanted[name] = text(truth)
    truth.disable_adapters()
    wanted["none"] = text(truth)
    assert len({*map(tuple, wanted.values())}) == 3
    for round_ in range(4):
        for name, expected in wanted.items():
            if name == "none":
                both.disable_adapters()
            else:
                both.enable_adapters()
                both.set_adapter(name)
            before = hits(both)
            assert text(both) == expected
            assert hits(both) - before == (1 if round_ > 1 else 0)


def test_strength_is_part_of_an_adapter(both: Any) -> None:
    for _ in range(3):
        text(both)
    assert hits(both) == 1
    for module in both.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("b", 0.25)
    text(both)
    assert hits(both) == 1


def test_weights_of_an_adapter_that_change(both: Any) -> None:
    for _ in range(3):
        text(both)
    name, weight = next((n, w) for n, w in both.named_parameters() if "lora_B.b" in n)
    weight.data[1, 1] += 1e-3
    text(both)
    assert hits(both) == 1, name
    weight.data[1, 1] -= 1e-3


def test_the_name_of_an_adapter_and_inactive_ones_do_not_count(llama: Path, tmp_path: Path) -> None:
    roots = []
    for names in ({"a": 3}, {"first": 3}, {"other": 9, "a": 3}):
        model = penstock.load(llama, store=tmp_path, host_memory="64MiB", kv_prefix="16MiB")
        for name, seed in names.items():
            add(model, name, seed)
        roots.append(model.penstock.prefixes.root)
        model.penstock.close()
    assert len({*roots}) == 1


def test_the_active_adapter_counts_in_a_wrapped_model(llama: Path, tmp_path: Path) -> None:
    """Two processes wrap the same weights, with another adapter active."""
    roots = []
    for active in ("a", "b", "a"):
        model = adapted(llama, a=3, b=4)
        model.set_adapter(active)
        with penstock.wrap(model, store=tmp_path, host_memory="64MiB", kv_prefix="16MiB"):
            roots.append(model.penstock.prefixes.root)
    assert roots[0] == roots[2] != roots[1]
