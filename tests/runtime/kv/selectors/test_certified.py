"""Certified attention of models: it leaves out what it says, reads what it needs, says where it cannot choose."""

from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.runtime.kv.attention.attention import paged_attention
from penstock.runtime.kv.selectors import certified
from penstock.runtime.kv.views.page_attention import PageAttention
from tests.support.paged import TOKENS, certificates_of, paged, settle, tier_of
from tests.support.tiny_models import save_tiny

PAGES, HOT = 40, 8
EPSILON = 1e-3
IDS = torch.randint(3, 300, (2, 200), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PageAttention, list[int]]]:
    """What certified attention chose, look by look."""
    found: list[tuple[PageAttention, list[int]]] = []
    real = certified.CertifiedSelector.choose

    def choose(self: certified.CertifiedSelector, look: PageAttention, number: int) -> Any:
        pages = real(self, look, number)
        found.append((look, [*pages]))
        return pages

    monkeypatch.setattr(certified.CertifiedSelector, "choose", choose)
    return found


def omitted(look: PageAttention, keys: torch.Tensor, pages: list[int]) -> float:
    """The greatest share of a row's softmax that the other pages have; ``keys`` [H, T, D]. Scores as they are rounded
    in attention."""
    groups = len(look.query) // len(keys)
    scores = look.query @ keys.repeat_interleave(groups, 0).mT * look.softmax.scaling
    mass = scores.double().softmax(-1)
    there = torch.zeros(mass.shape[-1], dtype=torch.bool)
    for page in pages:
        there[page * TOKENS : (page + 1) * TOKENS] = True
    return float(mass[..., ~there].sum(-1).max())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("summary", ["int8", "int4"])
@torch.no_grad()
def test_what_is_left_out_is_less_than_it_says(
    tmp_path: Path,
    store: Path,
    looks: list[tuple[PageAttention, list[int]]],
    summary: str,
    dtype: torch.dtype,
    rows: int,
) -> None:
    """Of keys that are large in every eighth page, most of which are on flash: some pages are read, not all."""
    folder = save_tiny("llama", tmp_path / "model", dtype)
    options = {"kv_attention": "certified", "kv_summary": summary, "kv_epsilon": EPSILON}
    with paged(folder, store, "192KiB", **options) as model:
        cache, chance = model.penstock.paged.new_cache(), torch.Generator().manual_seed(2)
        module, layer = model.model.layers[0].self_attn, cache.layers[0]
        keys = torch.randn(1, 2, PAGES * TOKENS + 5, 16, generator=chance)
        size = torch.where(torch.arange(keys.shape[2]) // TOKENS % HOT == 0, 6.0, 0.3)
        keys, values = (keys * size[:, None]).to(dtype), torch.randn(keys.shape, generator=chance).to(dtype)
        layer.update(keys, values)
        for _ in range(12):
            new = torch.randn(2, 1, 2, rows, 16, generator=chance).to(dtype)
            query = (2 * torch.randn(1, 4, rows, 16, generator=chance)).to(dtype)
            states = layer.update(new[0], new[1])
            keys, values = torch.cat([keys, new[0]], 2), torch.cat([values, new[1]], 2)
            out, _ = paged_attention(module, query, *states, None, scaling=0.25)
            look, pages = looks[-1]
            if rows == 1:
                share = omitted(look, keys[0], pages)
                said = certificates_of(model).most_omitted
                # Float32 sums in another order, after which a bfloat16 score may be its neighbour.
                assert share <= said * (1.00001 if dtype == torch.float32 else 1.2)
                assert said <= EPSILON
            bias = torch.full((rows, keys.shape[2]), -torch.inf).triu(keys.shape[2] - rows + 1)
            full = (query.double() @ keys.double().repeat_interleave(2, 1).mT * 0.25 + bias).softmax(-1)
            wanted = full @ values.double().repeat_interleave(2, 1)
            reach = 2 * float(values.double().abs().max()) * EPSILON * 4
            near = reach + (1e-5 if dtype == torch.float32 else 0.05)
            assert float((out.transpose(1, 2).double() - wanted).abs().max()) <= near
        stats, found = model.penstock.stats(), certificates_of(model)
        assert found.selections == 12
        assert stats.kv_pages_looked_at == found.pages_read < found.pages / 2
        assert found.weighed <= found.pages_read
        assert stats.kv_exact_layers == 0
        settle(tier_of(model).pool)


@pytest.mark.parametrize("attention", ["certified", "quest"])
@torch.no_grad()
def test_latents_are_looked_at_as_a_whole_and_that_is_said(tmp_path: Path, store: Path, attention: str) -> None:
    """What is cached of them is no key: no summary of it takes memory, in the first cache and the next."""
    folder = save_tiny("deepseek_v3", tmp_path / "model")
    logits = []
    for setting in ({}, {"kv_attention": attention}):
        with paged(folder, store, "1MiB", **setting) as model:
            tier = tier_of(model)
            for _ in range(2):
                cache = model(IDS, use_cache=True).past_key_values
                logits.append(model(IDS[:, :1], past_key_values=cache).logits)
                assert tier.pool.memory.reserved == 0
                assert all(sequence.summaries is None for layer in cache.layers for sequence in layer.sequences)
            assert model.penstock.stats().kv_exact_layers == (3 if setting else 0)
            assert model.penstock.stats().kv_pages_looked_at == 0
    assert all(torch.equal(each, logits[0]) for each in logits[1:])


@torch.no_grad()
def test_hot_pages_stay_in_memory_wherever_there_is_any(
    tiny_dense_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if another layer's pages filled it first, and are not on flash yet."""
    for module in ("planner", "evicting", "writes"):  # pages are written one by one
        monkeypatch.setattr(f"penstock.tiering.kv.{module}.EXTENT", 4096)
    with paged(tiny_dense_folder, store, "384KiB", kv_attention="certified") as model:
        tier_of(model).positions = 1000
        cache, chance = model.penstock.paged.new_cache(), torch.Generator().manual_seed(2)
        count = PAGES * TOKENS
        size = torch.where(torch.arange(count) // TOKENS % HOT == 0, 40.0, 0.1)
        for number in range(len(cache.layers)):
            keys, values = torch.randn(2, 1, 2, count, 16, generator=chance)
            cache.update(keys * size[:, None], values, number)
        for step in range(6):
            model(IDS[:1, step : step + 1], past_key_values=cache)
            settle(tier_of(model).pool)
        before = model.penstock.stats().kv_bytes_read
        model(IDS[:1, :1], past_key_values=cache)
        settle(tier_of(model).pool)
        found = certificates_of(model)
        assert found.pages_read < found.pages / 2
        assert model.penstock.stats().kv_bytes_read - before <= 2 * 4096


@torch.no_grad()
def test_too_little_memory_for_summaries_is_an_error(tiny_dense_folder: Path, store: Path) -> None:
    """Nobody waits for the room that pages take which it holds itself."""
    with paged(tiny_dense_folder, store, "256KiB", kv_attention="certified") as model:
        with pytest.raises(penstock.BudgetTooSmall, match="sums up the keys"):
            model(IDS[:, :180], use_cache=True)
        settle(tier_of(model).pool)
        assert tier_of(model).pool.memory.reserved == 0
