"""Parts of a prompt side by side: the bits of one after the other, and each weight is read once."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import Cache, DynamicCache

import penstock
from penstock.runtime.prefixes.calls import compute_part
from penstock.runtime.prefixes.layered import compute_layered, has_layers_in_order
from tests.support.tiny_models import save_tiny

ENDS = [32, 64, 96, 101]
KINDS = ["llama", "gemma3_text", "qwen3_moe", "gpt_oss", "deepseek_v3", "opt"]


def one_after_the_other(model: Any, ids: torch.Tensor, cache: Cache) -> list[torch.Tensor]:
    return [compute_part(model, ids, cache, end) for end in ENDS]


def side_by_side(model: Any, ids: torch.Tensor, cache: Cache) -> list[torch.Tensor]:
    parts = [partial(_part, model, ids, end) for end in ENDS]
    return compute_layered(model, model.penstock.forwards, cache, ENDS, parts)


def _part(model: Any, ids: torch.Tensor, end: int, seen: Cache) -> torch.Tensor:
    return compute_part(model, ids, seen, end)


def loaded(name: str, folder: Path, **options: Any) -> Any:
    source = save_tiny(name, folder / name, torch.bfloat16)
    least = penstock.plan(source).minimum_host_memory
    return penstock.load(source, store=folder / "store", host_memory=least + (20 << 10), **options)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_keys_values_and_logits_are_those_of_one_after_the_other(name: str, tmp_path: Path) -> None:
    ids = torch.randint(3, 300, (1, ENDS[-1]), generator=torch.Generator().manual_seed(0))
    with loaded(name, tmp_path) as model:
        alone, together = DynamicCache(config=model.config), DynamicCache(config=model.config)
        assert has_layers_in_order(together)
        wanted, found = one_after_the_other(model, ids, alone), side_by_side(model, ids, together)
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
        for one, other in zip(alone.layers, together.layers, strict=True):
            assert torch.equal(one.keys, other.keys)
            assert torch.equal(one.values, other.values)
        assert alone.get_seq_length() == together.get_seq_length() == ENDS[-1]
        after = [model(ids[:, :1], past_key_values=cache).logits for cache in (alone, together)]
        assert torch.equal(*after)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
@torch.no_grad()
def test_each_weight_is_read_once(name: str, tmp_path: Path) -> None:
    ids = torch.randint(3, 300, (1, ENDS[-1]), generator=torch.Generator().manual_seed(0))

    def read(model: Any, compute: Any) -> int:
        before = model.penstock.stats().flash_bytes_read
        compute(model, ids, DynamicCache(config=model.config))
        return int(model.penstock.stats().flash_bytes_read - before)

    with loaded(name, tmp_path, experts_prefetch="off") as model:
        for compute in (one_after_the_other, side_by_side):
            compute(model, ids, DynamicCache(config=model.config))  # trials read too
        weights = sum(block.extent.length for block in model.penstock._engine.bundle.manifest.blocks)
        assert read(model, one_after_the_other) > 2 * read(model, side_by_side)
        assert read(model, side_by_side) <= 1.05 * weights


def test_an_error_in_one_part_is_raised(tmp_path: Path) -> None:
    ids = torch.randint(3, 300, (1, ENDS[-1]), generator=torch.Generator().manual_seed(0))

    def fail(seen: Cache) -> None:
        raise ArithmeticError("lost count")

    with loaded("llama", tmp_path) as model, torch.no_grad():
        parts = [partial(_part, model, ids, ENDS[0]), fail, partial(_part, model, ids, ENDS[2])]
        with pytest.raises(ArithmeticError, match="lost count"):
            compute_layered(model, model.penstock.forwards, DynamicCache(config=model.config), ENDS[:3], parts)
        model.penstock._engine.check_integrity()
        first = one_after_the_other(model, ids, DynamicCache(config=model.config))
        second = side_by_side(model, ids, DynamicCache(config=model.config))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
