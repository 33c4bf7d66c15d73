"""A paged cache that is copied, looked into or written to: as transformers' own, or one clear error."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from tests.support.decoding import are_close
from tests.support.paged import paged, settle, tier_of
from tests.support.tiny_models import save_tiny

IDS = torch.randint(3, 300, (2, 60), generator=torch.Generator().manual_seed(1))
SMALL = "256KiB"


def follow(model: PreTrainedModel) -> list[torch.Tensor]:
    """Logits of two ways to go on from one prompt, in turn, each with a cache of its own."""
    with torch.no_grad():
        first = model(IDS[:, :40], use_cache=True).past_key_values
        second = copy.deepcopy(first)
        found = []
        for step in range(40, 60):
            for cache, ids in ((first, IDS), (second, IDS.flip(1))):
                found.append(model(ids[:, step : step + 1], past_key_values=cache).logits)
        third = copy.deepcopy(second)
        third.crop(-7)
        found.append(model(IDS[:, :30], past_key_values=third).logits)
        found.append(model(IDS[:, :1], past_key_values=second).logits)
    return found


@pytest.mark.parametrize("kv", ["16MiB", SMALL])
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "deepseek_v3"])
def test_a_copy_goes_on_alone(name: str, kv: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"layer_types": ["full_attention"] * 2} if name == "gpt_oss" else {}
    folder = save_tiny(name, tmp_path / name, max_position_embeddings=256, **more)
    truth = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager")
    with paged(folder, tmp_path / "store", kv) as model:
        if kv == SMALL:
            tier_of(model).staging = 0
        assert all(are_close(one, other) for one, other in zip(follow(model), follow(truth.eval()), strict=True))
        settle(tier_of(model).pool)
        assert tier_of(model).pool.usage().host_bytes == 0


def test_of_a_hybrid_model_the_recurrent_state_too(tmp_path: Path) -> None:
    folder = save_tiny("qwen3_next", tmp_path / "qwen3_next", max_position_embeddings=256)
    truth = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager")

    def two_ways(model: PreTrainedModel) -> list[torch.Tensor]:
        with torch.no_grad():
            first = model(IDS[:, :40], use_cache=True).past_key_values
            second = copy.deepcopy(first)
            return [
                model(ids[:, step : step + 1], past_key_values=cache).logits
                for step in range(40, 50)
                for cache, ids in ((first, IDS), (second, IDS.flip(1)))
            ]

    with paged(folder, tmp_path / "store", SMALL) as model:
        assert all(are_close(one, other) for one, other in zip(two_ways(model), two_ways(truth.eval()), strict=True))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda layer: layer.keys.mul_(2),
    "a view": lambda layer: layer.values[:, :, :3].zero_(),
    "an item": lambda layer: layer.keys.__setitem__(0, 1.0),
    "out": lambda layer: torch.mul(layer.keys, 2, out=layer.keys),
    "replaced": lambda layer: setattr(layer, "keys", torch.zeros(1)),
    "an array": lambda layer: layer.keys.detach().numpy().__setitem__(0, 1.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_written_to_keys_is_never_lost(change: Callable[[Any], Any], tmp_path: Path) -> None:
    with paged(save_tiny("llama", tmp_path / "llama"), tmp_path / "store", SMALL) as model, torch.no_grad():
        cache = model(IDS[:, :20], use_cache=True).past_key_values
        with pytest.raises((penstock.PenstockError, ValueError), match=r"lie in pages|read-only"):
            change(cache.layers[0])
        doubled = cache.layers[0].keys * 2
        assert type(doubled) is torch.Tensor
        assert torch.equal(doubled.mul_(0.5), cache.layers[0].keys)


def test_what_cannot_be_copied_says_so(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "llama")
    with paged(folder, tmp_path / "store", SMALL) as model, torch.no_grad():
        cache = model(IDS[:, :20], use_cache=True).past_key_values
        for refused in (pickle.dumps, copy.copy):
            with pytest.raises(penstock.PenstockError, match="deepcopy"):
                refused(cache)
    with paged(folder, tmp_path / "store", "16MiB", kv_attention="certified") as model, torch.no_grad():
        cache = model(IDS[:, :20], use_cache=True).past_key_values
        with pytest.raises(penstock.PenstockError, match="exact"):
            copy.deepcopy(cache)


def test_a_boolean_mask_is_that_of_the_model(tmp_path: Path) -> None:
    """Eager attention adds it to the scores. sdpa takes it as what is seen."""
    folder = save_tiny("llama", tmp_path / "llama")
    mask = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()
    for attention in ("eager", "sdpa"):
        truth = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()
        with paged(folder, tmp_path / "store", "16MiB", attn_implementation=attention) as model, torch.no_grad():
            found, wanted = (one(IDS[:, :20], attention_mask=mask).logits for one in (model, truth))
            assert are_close(found, wanted), attention


@pytest.mark.parametrize("format_", ["as-is", "int8"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "deepseek_v3"])
def test_a_parked_cache_takes_no_memory_and_goes_on_with_the_same_bits(name: str, format_: str, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path / name, max_position_embeddings=512)
    ids = torch.randint(3, 300, (1, 260), generator=torch.Generator().manual_seed(1))

    def follow(model: PreTrainedModel, park: bool) -> list[torch.Tensor]:
        found, past = [], None
        for start, end in ((0, 200), *((at, at + 1) for at in range(200, 250)), (250, 260)):
            out = model(ids[:, start:end], past_key_values=past)
            past = out.past_key_values
            found.append(out.logits[0, -1])
            if park and start % 9 == 0:
                past.park()
                taken = model.penstock.cache()  # pages for which the parked ones have to leave
                model(ids[:, :100], past_key_values=taken)
                if start == 234:
                    past, _ = copy.deepcopy(past), past
                taken.reset()
        return found

    with paged(folder, tmp_path / "store", "512KiB", kv_format=format_) as model, torch.no_grad():
        wanted = follow(model, park=False)
        assert all(map(torch.equal, follow(model, park=True), wanted))
        settle(tier_of(model).pool)
        assert tier_of(model).pool.usage().host_bytes == 0


def test_the_original_goes_on_where_a_parked_copy_has_sealed_its_pages(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "llama", max_position_embeddings=256)
    with paged(folder, tmp_path / "store", SMALL) as model, torch.no_grad():
        wanted = model(IDS[:, 40:50], past_key_values=model(IDS[:, :40], use_cache=True).past_key_values).logits
        cache = model(IDS[:, :40], use_cache=True).past_key_values
        other = copy.deepcopy(cache)
        other.park()
        sealed = [table.pages[-1] for table in cache.layers[0].sequences[0].tables]
        assert all(page.sealed for page in sealed)
        assert torch.equal(model(IDS[:, 40:50], past_key_values=cache).logits, wanted)
        assert not any(table.pages[-1] in sealed for table in cache.layers[0].sequences[0].tables)
        assert torch.equal(model(IDS[:, 40:50], past_key_values=other).logits, wanted)
