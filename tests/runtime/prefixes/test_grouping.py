"""Blocks of a prompt are computed together only where that leaves every bit as it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from penstock.runtime.prefixes import grouping
from penstock.runtime.prefixes import prefix as prefix_module
from penstock.runtime.prefixes.grouping import REST, divide_into_calls, may_compute_together
from penstock.runtime.prefixes.prefill import prefill, prefill_with_prefixes
from penstock.runtime.prefixes.prefix import Prefixes
from penstock.runtime.prefixes.prefix_identity import describe_identity
from penstock.tiering.store.prefixes.prefixes import PrefixStore
from penstock.tiering.units import MiB
from tests.support.tiny_models import tiny_config

BLOCK = 1024
SIZES = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 8192}


@pytest.fixture(autouse=True)
def fresh_verdicts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known yet; and one thread: how several divide products of a model so small is no matter here."""
    monkeypatch.setattr(grouping, "BIT_TRIALS", {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model_of(name: str = "llama", attention: str = "sdpa", dtype: torch.dtype = torch.bfloat16, **sizes: Any) -> Any:
    torch.manual_seed(0)
    config = tiny_config(name, **SIZES | sizes)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention).eval()


def tokens(count: int) -> list[int]:
    return torch.randint(3, 300, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def asked(model: Any, ids: list[int], cache: DynamicCache | None = None) -> bool:
    cache = DynamicCache(config=model.config) if cache is None else cache
    return may_compute_together(model, ids, cache, block=BLOCK, kind="this model")


def watched(model: Any) -> list[int]:
    """Tokens of each forward call of ``model`` from now on."""
    counts: list[int] = []
    model.register_forward_pre_hook(lambda _, args, named: counts.append(args[0].shape[1]), with_kwargs=True)
    return counts


@given(done=st.integers(0, 9), total=st.integers(1, 10 * BLOCK), together=st.booleans())
def test_calls_cover_the_prompt(done, total, together):
    done = min(done, (total - 1) // BLOCK) * BLOCK
    ends = divide_into_calls(done, total, block=BLOCK, together=together)
    assert ends[-1] == total
    assert all(a < b for a, b in zip([done, *ends], ends, strict=False))
    assert all(end % BLOCK == 0 for end in ends[:-1])
    counts = [b - a for a, b in zip([done, *ends], ends, strict=False)]
    if together:
        assert len(ends) <= 2
        assert counts[-1] >= REST or len(ends) == 1 or total % BLOCK < REST
    else:
        assert max(counts) <= BLOCK


def test_nothing_is_left_to_compute():
    assert divide_into_calls(2 * BLOCK, 2 * BLOCK, block=BLOCK, together=False) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_way_to_divide_a_prompt_gives_the_same_bits(dtype):
    model, ids = model_of(dtype=dtype), tokens(3 * BLOCK + 517)
    assert asked(model, ids)
    once = DynamicCache(config=model.config)
    logits = prefill(model, ids, once, block=len(ids))
    for end in (BLOCK, 3 * BLOCK):
        cache = DynamicCache(config=model.config)
        prefill(model, ids[:end], cache, block=BLOCK)
        assert torch.equal(prefill(model, ids, cache, block=len(ids)), logits)
        for a, b in zip(once.layers, cache.layers, strict=True):
            assert torch.equal(a.keys, b.keys)
            assert torch.equal(a.values, b.values)


def test_a_prompt_is_one_call_until_it_is_restored(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(prefix_module, "worth_reading", lambda *_, **__: True)
    model, ids = model_of(), tokens(3 * BLOCK + 20)
    assert asked(model, ids)
    key = next(iter(grouping.BIT_TRIALS))
    counts = watched(model)
    identity = describe_identity(model.config, weights="w", dtype=str(model.dtype))
    found = []
    with Prefixes(PrefixStore(tmp_path, 100 * MiB), identity, model.config, label="m", block=BLOCK) as prefixes:
        grouping.BIT_TRIALS[key.replace("this model", prefixes.kind)] = True
        for _ in range(3):
            counts.clear()
            cache = DynamicCache(config=model.config)

            def last(cache: DynamicCache = cache) -> torch.Tensor:
                return model(torch.tensor([ids[cache.get_seq_length() :]]), past_key_values=cache).logits[0, -1]

            logits = prefill_with_prefixes(prefixes, model, torch.tensor([ids]), cache, last)
            found.append((tuple(counts), logits))
            prefixes.flush()
    assert [counts for counts, _ in found] == [(3 * BLOCK, 20), (3 * BLOCK, 20), (20,)]
    assert all(torch.equal(logits, found[0][1]) for _, logits in found)


def test_it_is_tried_once_and_the_first_block_is_kept():
    model, ids = model_of(), tokens(2 * BLOCK)
    counts, cache = watched(model), DynamicCache(config=model.config)
    assert asked(model, ids, cache)
    assert counts == [BLOCK + REST + 1, BLOCK, REST + 1]
    assert cache.get_seq_length() == BLOCK
    assert asked(model, ids)
    assert len(counts) == 3


@pytest.mark.parametrize("what", ["keys", "logits"])
def test_bits_that_follow_from_the_number_of_rows_are_seen(what):
    model, ids = model_of(), tokens(2 * BLOCK)
    projection = model.model.layers[1].self_attn.k_proj if what == "keys" else model.model.layers[1].mlp.down_proj
    original = projection.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        out = original(x)
        if x.shape[-2] > BLOCK:
            out[..., -1, 3] = torch.nextafter(out[..., -1, 3], torch.tensor(9.0, dtype=out.dtype)) + 1
        return out

    projection.forward = forward
    assert not asked(model, ids)
    assert list(grouping.BIT_TRIALS.values()) == [False]


def test_attention_that_is_not_torchs_own_is_seen():
    model = model_of()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert not asked(model, tokens(2 * BLOCK))
    assert list(grouping.BIT_TRIALS.values()) == [False]


@pytest.mark.parametrize(
    ("name", "attention", "sizes"),
    [
        ("qwen3_moe", "sdpa", {}),
        ("llama", "eager", {}),
        ("gemma3_text", "sdpa", {}),
        ("qwen3_next", "sdpa", {}),
        ("llama", "sdpa", {"intermediate_size": 200}),
    ],
    ids=["experts", "eager", "windows", "recurrent", "numbers left over"],
)
def test_others_are_not_even_tried(name, attention, sizes):
    assert not asked(model_of(name, attention, **sizes), tokens(2 * BLOCK))
    assert not grouping.BIT_TRIALS


def test_a_short_prompt_has_no_say():
    model = model_of()
    assert not asked(model, tokens(BLOCK + REST))
    cache = DynamicCache(config=model.config)
    prefill(model, tokens(BLOCK), cache, block=BLOCK)
    assert not asked(model, tokens(2 * BLOCK), cache)
    assert not grouping.BIT_TRIALS
