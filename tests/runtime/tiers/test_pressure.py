"""Memory runs short and comes back in the middle of tokens: the same bits, less memory, and all of it back again."""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from penstock.runtime.loading import install
from penstock.runtime.tiers import pressure
from penstock.tiering.units import MiB
from tests.support.engines import engine_of
from tests.support.fakes import FakeMachine
from tests.support.logits import IDS, logits
from tests.support.tiny_models import save_tiny

TOTAL = 1024 * MiB
PLENTY, SHORT = 1 << 40, 0
KINDS = ("qwen3_moe", "llama", "qwen2", "gpt2", "deepseek_v3")
"""Experts; layers alone; embeddings tied to the output, and rows of them; weights used outside of their module."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """A machine that every model loaded here sees, and that is only looked at when a test does."""
    machine = FakeMachine(PLENTY, TOTAL)
    monkeypatch.setattr(install, "MemoryMeter", lambda: machine)
    monkeypatch.setattr(pressure, "PERIOD", 1e6)
    return machine


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint and transformers' logits."""
    overrides = {"num_hidden_layers": 5} if request.param in ("llama", "qwen2", "qwen3_moe") else {}
    folder = save_tiny(request.param, tmp_path_factory.mktemp("pressure") / request.param, **overrides)
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return folder, logits(AutoModelForCausalLM.from_pretrained(folder, **options).eval())


def load(folder: Path, store: Path, **options: Any) -> PreTrainedModel:
    options = {"host_memory": "64MiB", "host_memory_floor": 1} | options
    return penstock.load(folder, store=store, attn_implementation="eager", **options)


class Squeeze:
    """Looks at the machine now, at a time of its own."""

    def __init__(self, model: PreTrainedModel, machine: FakeMachine) -> None:
        self.engine, self.machine = engine_of(model), machine
        self.times = itertools.count(0, 100.0)

    def __call__(self, available: int) -> None:
        self.machine.available = available
        self.engine.pressure.look(self.engine.bridge, next(self.times))
        if available == PLENTY:  # seen once it has lasted
            for _ in range(3):
                self.engine.pressure.look(self.engine.bridge, next(self.times))
        self.engine.bridge.check_integrity()


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_bits_are_the_same_whatever_memory_does_in_a_token(
    checkpoint: tuple[Path, Any], store: Path, machine: FakeMachine
) -> None:
    folder, expected = checkpoint
    with load(folder, store) as model:
        whole = model.penstock.stats()
        assert whole.host_floor < whole.host_limit, "nothing is elastic: the test shows nothing"
        assert equal(expected, logits(model))
        squeeze, turn = Squeeze(model, machine), itertools.count()
        for module in model.modules():  # before and after every fifth module or so
            module.register_forward_pre_hook(
                lambda *_: squeeze((SHORT, PLENTY)[n // 5 % 2]) if (n := next(turn)) % 5 == 0 else None
            )
        for _ in range(3):
            assert equal(expected, logits(model))
        stats = model.penstock.stats()
        assert min(stats.host_shrinks, stats.host_growths) > 20
        assert stats.flash_bytes_read > whole.flash_bytes_read


def test_shrinks_to_the_floor_at_rest_and_grows_back_whole(
    checkpoint: tuple[Path, Any], store: Path, machine: FakeMachine
) -> None:
    folder, expected = checkpoint
    with load(folder, store) as model:
        logits(model)
        squeeze = Squeeze(model, machine)
        whole = model.penstock.stats()
        engine = engine_of(model)
        before = engine.tier.arena.resident_bytes()
        squeeze(SHORT)
        small = model.penstock.stats()
        assert small.host_limit == small.host_floor
        assert small.resident_bytes <= small.host_bytes <= small.host_floor
        assert engine.tier.arena.resident_bytes() <= before - (whole.resident_bytes - small.resident_bytes)
        assert equal(expected, logits(model))
        assert model.penstock.stats().resident_bytes <= small.host_floor
        squeeze(PLENTY)
        for _ in range(3):
            assert equal(expected, logits(model))
        grown = model.penstock.stats()
        assert (grown.host_limit, grown.host_bytes) == (whole.host_limit, whole.host_bytes)
        assert equal(expected, logits(model))
        last = model.penstock.stats()
        # What was never used may still be read on a guess.
        assert (last.demand_bytes, last.row_bytes) == (grown.demand_bytes, grown.row_bytes), "not all came back to stay"


def test_several_threads_under_pressure(tiny_moe_folder: Path, store: Path, machine: FakeMachine) -> None:
    reference = AutoModelForCausalLM.from_pretrained(
        tiny_moe_folder, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    options = {"max_new_tokens": 12, "pad_token_id": 0}
    prompts = [IDS[:1, :length] for length in (3, 7, 11)]
    expected = [reference.generate(prompt, **options) for prompt in prompts]
    with load(tiny_moe_folder, store) as model:
        squeeze = Squeeze(model, machine)
        found: dict[int, Any] = {}
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: model.generate(prompts[n], **options)}), daemon=True)
            for n in range(len(prompts))
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            squeeze(SHORT)
            squeeze(PLENTY)
            threads[0].join(0.005)
        assert all(torch.equal(found[n], expected[n]) for n in range(len(prompts)))


def test_the_floor_is_kept_and_host_alike_switches_it_off(
    tiny_dense_folder: Path, store: Path, machine: FakeMachine
) -> None:
    with load(tiny_dense_folder, store, host_memory_floor="64MiB") as model:
        Squeeze(model, machine)(SHORT)
        stats = model.penstock.stats()
        assert (stats.host_limit, stats.host_shrinks) == (stats.host_floor, 0)
        assert not engine_of(model).elastic
    with load(tiny_dense_folder, store, host_memory_floor="300KiB") as model:
        Squeeze(model, machine)(SHORT)
        assert model.penstock.stats().host_limit == 300 * 1024


class Tier:
    """Remembers what it is resized to."""

    def __init__(self) -> None:
        self.limits: list[Any] = []
        self.resized = asyncio.Event()

    def resize(self, limits: Any) -> None:
        self.limits.append(limits)
        self.resized.set()

    def resident_bytes(self) -> int:
        return 0


@pytest.fixture
def watched(tiny_moe_folder: Path, store: Path, machine: FakeMachine) -> Iterator[pressure.Pressure]:
    with load(tiny_moe_folder, store) as model:
        yield pressure.Pressure(machine, engine_of(model)._divisions)


def test_a_machine_that_does_not_tell_changes_nothing(watched: pressure.Pressure, machine: FakeMachine) -> None:
    def memory() -> tuple[int, int]:
        raise OSError("no /proc here")

    machine.memory = memory  # type: ignore[method-assign]
    tier = Tier()
    watched.look(tier, 0.0)
    assert tier.limits == []
    assert watched.elastic.limit == watched.elastic.ceiling


async def test_the_watch_looks_until_it_is_cancelled(
    watched: pressure.Pressure, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "PERIOD", 0.001)
    machine.available = SHORT
    tier = Tier()
    task = asyncio.create_task(watched.watch(tier))
    await asyncio.wait_for(tier.resized.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert watched.elastic.limit == watched.elastic.floor
