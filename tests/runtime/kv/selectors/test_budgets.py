"""Attention with a fixed budget of KV pages on a model: what it computes, what it keeps, and what it gives back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import penstock
from penstock.kernels.kv.blockwise import BlockwiseAttention
from penstock.runtime.kv.cache.layer import PagedLayer
from penstock.runtime.prefixes.prefix_source import is_supported
from penstock.tiering.errors import ConfigError
from tests.support.paged import TOKENS, budgets_of, paged, settle, tier_of
from tests.support.tiny_models import save_tiny

MiB = 1 << 20
DROPPING = ("window", "h2o", "snapkv")
LONG = torch.randint(3, 300, (2, 200), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("checkpoints") / "llama", max_position_embeddings=2048)


def there(layer: PagedLayer, row: int = 0) -> list[int]:
    found = [[page.index for page in track.pages if not page.is_gone] for track in layer.sequences[row].tables]
    assert found[0] == found[1], "keys and values stay together"
    return found[0]


@torch.no_grad()
def decoded(model: PreTrainedModel, steps: int, prompt: torch.Tensor = LONG, **more: Any) -> tuple[torch.Tensor, Any]:
    """Logits [steps + 1, B, V] after the prompt and each step, and the cache."""
    out = model(prompt, use_cache=True, **more)
    logits = [out.logits[:, -1]]
    mask = more.get("attention_mask")
    for step in range(steps):
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            more["attention_mask"] = mask
        more.pop("position_ids", None)
        out = model(LONG[: len(prompt), step : step + 1], past_key_values=out.past_key_values, use_cache=True, **more)
        logits.append(out.logits[:, -1])
    return torch.stack(logits), out.past_key_values


@pytest.fixture(scope="module")
def exact(folder: Path, store: Path) -> torch.Tensor:
    with paged(folder, store, "1MiB") as model:
        return decoded(model, 24)[0]


@pytest.mark.parametrize("mode", [*DROPPING, "quest"])
@pytest.mark.parametrize("budget", ["100%", "4096"])
def test_with_room_for_all_it_is_exact(folder: Path, store: Path, exact: torch.Tensor, mode: str, budget: str) -> None:
    with paged(folder, store, "1MiB", kv_attention=mode, kv_budget=budget) as model:
        logits, _ = decoded(model, 24)
        assert torch.equal(logits, exact)
        assert budgets_of(model).dropped == 0


@pytest.mark.parametrize("mode", DROPPING)
@pytest.mark.parametrize("layers", ["even", "by-need"])
def test_what_is_kept_stays_within_the_budget_over_200_steps(folder: Path, store: Path, mode: str, layers: str) -> None:
    with paged(folder, store, "256KiB", kv_attention=mode, kv_budget="256", kv_layers=layers) as model:
        tier = tier_of(model)
        budgets = budgets_of(model)
        budgets.budget = type(budgets.budget)(tokens=6 * TOKENS)  # pages are small here
        with torch.no_grad():
            out = model(LONG[:1], use_cache=True)
            cache = out.past_key_values
            ids = out.logits[:, -1:].argmax(-1)
            for _ in range(201):
                ids = model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
                kept = [there(layer) for layer in cache.layers]
                assert sum(map(len, kept)) <= 2 * 6
                assert all(pages[0] == 0 and pages[-1] == (cache.get_seq_length() - 1) // TOKENS for pages in kept)
        settle(tier.pool)
        assert cache.get_seq_length() == 401
        page = tier.pool.memory.used // sum(2 * len(pages) for pages in kept)
        assert tier.pool.memory.used == 2 * page * sum(map(len, kept))
        assert len(tier.pool.places._of) <= 2 * sum(map(len, kept)), "what was dropped gave its place back"
        assert budgets.dropped == sum(26 - len(pages) for pages in kept)
        assert budgets.pages_read <= 6 * budgets.selections
        stats = model.penstock.stats()
        assert stats.kv_pages_dropped == budgets.dropped
        assert stats.kv_pages_looked_at + stats.kv_pages_passed_over == 2 * sum(-(-(201 + n) // 16) for n in range(201))
        assert (0 < stats.kv_dropped_share < 1) == (mode != "window")


def test_quest_drops_nothing_and_looks_at_its_budget(folder: Path, store: Path, exact: torch.Tensor) -> None:
    with paged(folder, store, "1MiB", kv_attention="quest", kv_budget="50%") as model:
        logits, cache = decoded(model, 24)
        budgets = budgets_of(model)
        assert [there(layer) for layer in cache.layers] == [[*range(14)]] * 2
        assert budgets.selections == 24 * 2 * 2
        assert budgets.pages_read == sum(-(-(201 + step) // (2 * TOKENS)) for step in range(24)) * 4
        assert not torch.equal(logits[1:], exact[1:])
        assert torch.equal(logits[0], exact[0])


@torch.no_grad()
def attend(layers: Sequence[PagedLayer], model: PreTrainedModel, query: torch.Tensor, keys: torch.Tensor) -> None:
    """One layer's attention of query [H, R, D] to new keys [H, R, D], which are their own values."""
    from penstock.runtime.kv.attention.attention import paged_attention

    module = model.model.layers[0].self_attn
    for layer in layers:
        states = layer.update(keys[None], keys[None])
        paged_attention(module, query[None], *states, None, scaling=1.0)


def planted(model: PreTrainedModel, heavy: int, first: int, count: int = 12 * TOKENS) -> list[int]:
    """Pages that a layer keeps of a prompt whose queries from number ``first`` on attend to the page ``heavy`` only."""
    chance = torch.Generator().manual_seed(3)
    keys, query = (torch.randn(heads, count, 16, generator=chance) * 0.1 for heads in (2, 4))
    keys[..., 0] = 0.0
    keys[:, heavy * TOKENS : (heavy + 1) * TOKENS, 0] = 4.0
    query[:, first:, 0] = 4.0
    cache = model.penstock.paged.new_cache()
    attend(cache.layers[:1], model, query, keys)
    return there(cache.layers[0])


@pytest.mark.parametrize(
    ("mode", "first", "stays"),
    [
        ("h2o", 0, True),
        ("snapkv", 12 * TOKENS - 64, True),
        ("window", 0, False),
    ],
)
def test_the_heavy_page_stays_where_attention_counts(
    folder: Path, store: Path, mode: str, first: int, stays: bool
) -> None:
    with paged(folder, store, "1MiB", kv_attention=mode, kv_budget="34%") as model:
        for heavy in (2, 3, 5):
            kept = planted(model, heavy, first)
            assert len(kept) == 4
            assert (heavy in kept) == stays


def test_snapkv_asks_the_last_queries_alone(folder: Path, store: Path) -> None:
    with paged(folder, store, "1MiB", kv_attention="snapkv", kv_budget="34%") as model:
        assert 2 in planted(model, heavy=2, first=12 * TOKENS - 64)
        assert budgets_of(model).dropped_share < 0.5


def test_layers_get_pages_by_need(folder: Path, store: Path) -> None:
    """One layer attends to one page, the other to all."""
    with paged(folder, store, "1MiB", kv_attention="snapkv", kv_budget="50%", kv_layers="by-need") as model:
        cache = model.penstock.paged.new_cache()
        count = 16 * TOKENS
        keys, query = torch.zeros(2, count, 16), torch.zeros(4, count, 16)
        keys[:, 5 * TOKENS : 6 * TOKENS, 0] = query[..., 0] = 6.0
        attend(cache.layers[:1], model, query, keys)
        assert len(there(cache.layers[0])) == 16, "the others are not known yet"
        attend(cache.layers[1:], model, query * 0, keys)
        peaked, flat = (there(layer) for layer in cache.layers)
        assert len(peaked) < 6 < 10 < len(flat)
        assert 5 in peaked
        assert len(peaked) + len(flat) <= 2 * 9


def test_layers_that_take_turns_lose_no_pages(folder: Path, store: Path) -> None:
    """Each prompt deals anew; pages go to layers that have them."""
    with paged(folder, store, "1MiB", kv_attention="snapkv", kv_budget="50%", kv_layers="by-need") as model:
        cache = model.penstock.paged.new_cache()
        keys = torch.zeros(2, 4 * TOKENS, 16)
        keys[:, TOKENS : 2 * TOKENS, 0] = 6.0
        for turn in range(12):
            for number, layer in enumerate(cache.layers):
                query = torch.zeros(4, 4 * TOKENS, 16)
                query[..., 0] = 6.0 * (turn % 2 == number)
                attend([layer], model, query, keys)
        attend(cache.layers, model, torch.zeros(4, 1, 16), keys[:, :1])  # what was to leave has left
        assert 45 <= sum(len(there(layer)) for layer in cache.layers) <= 50


def test_padding_takes_no_room_and_is_no_sink(folder: Path, store: Path) -> None:
    """A padded row of a batch keeps what it keeps alone."""
    prompt = torch.cat([torch.zeros(1, 64, dtype=torch.long), LONG[:1, :136]], 1)
    mask = torch.cat([torch.zeros(1, 64, dtype=torch.long), torch.ones(1, 136, dtype=torch.long)], 1)
    with paged(folder, store, "1MiB", kv_attention="window", kv_budget="34%") as model:
        _, cache = decoded(model, 2, prompt, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp_min(0))
        assert [there(layer) for layer in cache.layers] == [[4, 9, 10, 11, 12]] * 2


def test_a_failed_forward_takes_nothing_away(folder: Path, store: Path) -> None:
    with paged(folder, store, "1MiB", kv_attention="h2o", kv_budget="40%") as model:
        _, cache = decoded(model, 4)
        before = [there(layer) for layer in cache.layers]
        broken = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with torch.no_grad(), pytest.raises(ZeroDivisionError):
            model(LONG, past_key_values=cache, use_cache=True)
        broken.remove()
        assert cache.get_seq_length() == 204
        assert [there(layer) for layer in cache.layers] == before
        with torch.no_grad():
            model(LONG[:, :1], past_key_values=cache, use_cache=True)
        settle(tier_of(model).pool)


def test_caches_are_reordered_and_cropped_as_far_as_pages_are_there(folder: Path, store: Path) -> None:
    with paged(folder, store, "1MiB", kv_attention="window", kv_budget="40%") as model:
        _, cache = decoded(model, 4)
        kept = there(cache.layers[0])
        cache.reorder_cache(torch.tensor([1, 1]))
        cache.crop(-6)
        with torch.no_grad():
            model(LONG[:, :2], past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == 200
        assert there(cache.layers[0]) == there(cache.layers[0], 1) == kept
        with pytest.raises(ConfigError, match="dropped"):
            cache.layers[0].keys  # noqa: B018
        with pytest.raises(ConfigError, match="cropped to recent"):
            cache.crop(-(200 - 2 * TOKENS - 3))
        assert not is_supported(cache)
        cache.reset()
        settle(tier_of(model).pool)
        assert tier_of(model).pool.memory.used == 0


def test_a_second_prompt_sees_what_was_kept(folder: Path, store: Path) -> None:
    with paged(folder, store, "1MiB", kv_attention="window", kv_budget="40%") as model:
        _, cache = decoded(model, 2)
        with torch.no_grad():
            model(LONG[:, :50], past_key_values=cache, use_cache=True)
            model(LONG[:, :150], past_key_values=cache, use_cache=True)
            model(LONG[:, :1], past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == 403
        assert [len(there(layer)) for layer in cache.layers] == [11, 11]


def test_masses_of_watched_rows_are_those_of_the_softmax() -> None:
    chance = torch.Generator().manual_seed(4)
    query, keys, values = (torch.randn(heads, 90, 8, generator=chance) for heads in (4, 2, 2))
    attention, masses = BlockwiseAttention(query, 1.0, watched=20), torch.zeros(90)
    for sweep in range(attention.first, 3):
        for start in (0, 32, 64):
            part = slice(start, min(90, start + 32))
            attention.add(sweep, keys[:, part], values[:, part], offset=-start, masses=masses[part])
    scores = query @ keys.repeat_interleave(2, 0).mT
    expected = scores.masked_fill(torch.ones(90, 90).triu(1).bool(), -torch.inf).softmax(-1)[:, -20:].sum((0, 1))
    assert torch.allclose(masses, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_budget": "25%"}, r'budget = 25% is for \[kv\] attention = "window", "h2o", "snapkv", "quest"'),
        ({"kv_attention": "certified", "kv_budget": 4096}, "budget = 4096 is for"),
        ({"kv_attention": "quest", "kv_layers": "by-need"}, 'layers = "by-need" is for'),
        ({"kv_attention": "h2o", "kv_budget": 100}, "at least 256 tokens"),
        ({"kv_attention": "h2o", "kv_host_memory": None}, r"set \[kv\] host"),
        ({"kv_attention": "h2o", "kv_budget": "half"}, 'kv_budget = "half": a budget is a share'),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    folder: Path, store: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        penstock.load(folder, store=store, host_memory="64MiB", **{"kv_host_memory": "1MiB", **options})
