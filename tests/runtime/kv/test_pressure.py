"""Memory runs short while KV is in pages: they leave for flash and come back, and nothing else changes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.runtime.tiers.test_pressure import PLENTY, SHORT, Squeeze, machine  # noqa: F401
from tests.support.fakes import FakeMachine
from tests.support.paged import paged, settle, tier_of
from tests.support.tiny_models import save_tiny

KiB = 1 << 10
IDS = torch.randint(3, 300, (2, 200), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of keys and values whose pages take 4 KiB, 16 tokens each: 52 of them in a context, for each layer."""
    return save_tiny("llama", tmp_path_factory.mktemp("kv") / "llama", num_hidden_layers=4)


def stepped(model: PreTrainedModel, steps: int = 3, squeeze: Squeeze | None = None) -> torch.Tensor:
    """Logits of a prompt and some more tokens; memory runs short and comes back at each."""
    with torch.no_grad():
        out = model(IDS, use_cache=True)
        logits = [out.logits]
        for step in range(steps):
            if squeeze is not None:
                squeeze((SHORT, PLENTY)[step % 2])
            out = model(IDS[:, step : step + 1], past_key_values=out.past_key_values)
            logits.append(out.logits)
    return torch.cat(logits, 1)


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


def test_tokens_are_the_same_whatever_memory_does(folder: Path, store: Path, machine: FakeMachine) -> None:  # noqa: F811
    wanted = stepped(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval(), 8)
    with paged(folder, store, "512KiB", host_memory_floor=1) as model:
        tier_of(model).staging = 0
        squeeze = Squeeze(model, machine)
        assert same(stepped(model, 8, squeeze), wanted)
        turn = 0

        def each(*_: object) -> None:
            nonlocal turn
            turn += 1
            squeeze((SHORT, PLENTY)[turn % 2])

        for layer in model.model.layers:
            layer.register_forward_pre_hook(each)
        assert same(stepped(model, 8), wanted)
        settle(tier_of(model).pool)
        assert model.penstock.stats().host_shrinks > 20


def test_pages_leave_memory_and_come_back_to_stay(
    folder: Path,
    store: Path,
    machine: FakeMachine,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock.runtime.loading.openings.kv_memory.OPEN", 1 / 16)
    with paged(folder, store, "1152KiB", host_memory_floor=1) as model, torch.no_grad():
        tier_of(model).staging = 0
        pool, squeeze = tier_of(model).pool, Squeeze(model, machine)
        past = model(IDS, use_cache=True).past_key_values
        whole, held = model.penstock.stats(), pool._arena.resident_bytes()
        assert whole.kv_host_limit == 1152 * KiB
        assert whole.kv_host_bytes == 4 * 52 * 4 * KiB, "it does not all fit"
        squeeze(SHORT)
        settle(pool)
        squeeze(SHORT)
        small = model.penstock.stats()
        assert small.host_limit == small.host_floor < whole.host_floor + 1
        assert small.kv_host_limit == pool.part.floor < 0.5 * small.kv_host_budget
        newest = 16 * 4 * KiB  # stay where they are until they are full
        assert small.kv_host_bytes <= small.kv_host_limit + newest
        assert small.resident_bytes <= small.host_bytes + newest <= small.host_limit + newest
        assert pool._arena.resident_bytes() <= held - (whole.kv_host_bytes - small.kv_host_bytes)
        model(IDS[:, :1], past_key_values=past)
        read = model.penstock.stats().kv_bytes_read
        assert read > 0
        squeeze(PLENTY)
        assert model.penstock.stats().kv_host_limit == whole.kv_host_limit
        for _ in range(2):
            model(IDS[:, :1], past_key_values=past)
        settle(pool)
        read = model.penstock.stats().kv_bytes_read
        model(IDS[:, :1], past_key_values=past)
        assert model.penstock.stats().kv_bytes_read == read, "not all came back to stay"


def test_a_batch_that_has_room_in_the_whole_budget_has_it_below_a_limit(
    folder: Path,
    store: Path,
    machine: FakeMachine,  # noqa: F811
) -> None:
    """Pages that are not full cannot leave: 6 sequences have 48 of them."""
    with paged(folder, store, "512KiB", host_memory_floor=1) as model, torch.no_grad():
        tier_of(model).staging = 0
        Squeeze(model, machine)(SHORT)
        assert model.penstock.stats().kv_host_limit <= 384 * KiB
        ids = IDS[:1].repeat(11, 1)
        past = model(ids[:, :40], use_cache=True).past_key_values
        for step in range(3):
            model(ids[:, step : step + 1], past_key_values=past)
        settle(tier_of(model).pool)


def test_the_value_of_host_switches_it_off(folder: Path, store: Path, machine: FakeMachine) -> None:  # noqa: F811
    with paged(folder, store, "512KiB", host_memory_floor="64MiB") as model:
        Squeeze(model, machine)(SHORT)
        stats = model.penstock.stats()
        assert (stats.kv_host_limit, stats.host_shrinks) == (512 * KiB, 0)
