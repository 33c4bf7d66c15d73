"""generate with prompts that are kept on flash, over restarts: less is computed, and the text is the same."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from penstock.runtime.loading.openings.prefixes import block_of
from penstock.runtime.prefixes import prefix
from penstock.tiering.errors import ConfigError
from penstock.tiering.store.bundle.folder import PREFIXES
from penstock.tiering.store.prefixes.prefixes import PrefixStore
from penstock.tiering.units import MiB
from tests.support.kept_prompts import LENGTHS, PROMPT, generate, start, start_and_kill
from tests.support.tiny_models import save_tiny, tiny_config

QUOTA = {"kv_prefix": "8MiB"}
RESTORED = sum((length - 1) // 64 * 64 for length in LENGTHS)
"""Tokens, when all is there."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("kept") / "llama", torch.bfloat16)


@pytest.mark.parametrize("kv", [{}, {"kv_host_memory": "2MiB"}], ids=["transformers", "pages"])
def test_the_third_process_restores_what_the_second_stored(llama, tmp_path, kv):
    without = generate(llama, tmp_path, **kv)
    first, second, third = (generate(llama, tmp_path, lengths=(250,), **QUOTA, **kv) for _ in range(3))
    assert (first["hits"], first["bytes_written"], second["hits"]) == (0, 0, 0)
    assert second["bytes_written"] > 0
    assert (third["hits"], third["tokens_restored"], third["bytes_written"]) == (1, 192, 0)
    warm = generate(llama, tmp_path, **QUOTA, **kv)
    assert (warm["hits"], warm["tokens_restored"]) == (len(LENGTHS), RESTORED)
    assert warm["bytes_read"] > 0
    cold = generate(llama, tmp_path / "elsewhere", **QUOTA | {"kv_namespace": "cold"}, **kv)
    assert warm["texts"] == cold["texts"]
    assert warm["texts"] == without["texts"]
    assert first["texts"] == second["texts"] == third["texts"] == warm["texts"][-1:]


def test_whoever_differs_finds_nothing(llama, tmp_path):
    for _ in range(2):
        generate(llama, tmp_path, lengths=(250,), **QUOTA)
    other = save_tiny("llama", tmp_path / "other", torch.bfloat16, intermediate_size=128)
    elsewise = [
        (other, {}),
        (llama, {"dtype": torch.float32}),
        (llama, {"kv_namespace": "me"}),
        (llama, {"kv_host_memory": "2MiB"}),
        (llama, {"weights_format": "int8"}),
    ]
    found = [start(folder, tmp_path, (250,), **QUOTA, **options) for folder, options in elsewise]
    assert [result()["hits"] for result in found] == [0] * len(found)
    assert generate(llama, tmp_path, lengths=(250,), **QUOTA)["hits"] == 1


def test_processes_at_once_and_one_that_is_killed(llama, tmp_path):
    expected = generate(llama, tmp_path)["texts"]
    for after in (0.05, 0.3):
        others = [start(llama, tmp_path, LENGTHS, **QUOTA) for _ in range(4)]
        assert start_and_kill(llama, tmp_path, after, **QUOTA)
        assert [other()["texts"] for other in others] == [expected] * 4
    assert not PrefixStore(tmp_path, 8 * MiB).verify()
    assert generate(llama, tmp_path, **QUOTA)["hits"] > 0


def test_the_quota_is_kept(llama, tmp_path):
    for _ in range(3):
        found = generate(llama, tmp_path, kv_prefix="40KiB")
    assert PrefixStore(tmp_path, 40 << 10).used_bytes() <= 40 << 10
    assert 0 < found["tokens_restored"] < RESTORED


def loaded(folder: Path, store: Path, **options):
    return penstock.load(folder, store=store, host_memory="64MiB", **QUOTA | options)


def test_a_store_that_cannot_be_used_is_noted(llama, tmp_path):
    (tmp_path / PREFIXES).write_text("no folder")
    with loaded(llama, tmp_path) as model:
        assert model.penstock.prefixes is None
        assert model.generate(PROMPT, max_new_tokens=2, do_sample=False).shape == (1, 252)
        assert "prefix cannot be used" in model.penstock.stats().prefix_problem


def test_a_store_that_goes_away_is_noted(llama, tmp_path):
    with loaded(llama, tmp_path) as model:
        folder = model.penstock.prefixes.store.folder
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        assert model.generate(PROMPT, max_new_tokens=2, do_sample=False).shape == (1, 252)
        model.penstock.prefixes.flush()
        assert "No such file" in model.penstock.stats().prefix_problem


def test_windows_and_recurrent_states_are_kept_at_the_end_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(prefix, "worth_reading", lambda *_, **__: True)
    folder = save_tiny("qwen3_next", tmp_path / "model", torch.float32)
    texts = []
    for expected in (0, 0, 192):
        with loaded(folder, tmp_path) as model:
            texts.append(model.generate(PROMPT, max_new_tokens=6, do_sample=False).tolist())
            assert model.penstock.stats().prefix_tokens_restored == expected
    assert texts[0] == texts[1] == texts[2]


@pytest.fixture
def kept(llama, tmp_path, monkeypatch):
    """A model that would find PROMPT."""
    monkeypatch.setattr(prefix, "worth_reading", lambda *_, **__: True)
    with loaded(llama, tmp_path) as model:
        for _ in range(2):
            model.generate(PROMPT, max_new_tokens=1, do_sample=False)
            model.penstock.prefixes.flush()
        yield model


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"input_ids": PROMPT.repeat(2, 1)},
        {"attention_mask": (torch.arange(250) > 3).long()[None]},
        {"output_hidden_states": True},
        {"prefill_chunk_size": 100},
    ],
    ids=["beams", "batch", "padding", "hidden states", "chunks"],
)
def test_what_is_no_plain_prompt_is_transformers_own(kept, options):
    kept.generate(**{"input_ids": PROMPT, "max_new_tokens": 2, "do_sample": False} | options)
    assert kept.penstock.stats().prefix_hits == 0


def test_sampling_finds_prompts_too_and_is_repeatable(kept):
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(kept.generate(PROMPT, max_new_tokens=8, do_sample=True).tolist())
    assert drawn[0] == drawn[1]
    assert kept.penstock.stats().prefix_hits == 2


def test_an_adapter_is_another_model(kept):
    kept.model.layers[0].add_module("adapter", torch.nn.Identity())
    kept.generate(PROMPT, max_new_tokens=2, do_sample=False)
    assert kept.penstock.stats().prefix_hits == 0


def test_those_who_call_the_model_themselves_restore_too(kept):
    handle, ids = kept.penstock, PROMPT[0].tolist()
    cache = handle.cache()
    restored = handle.prefixes.restore(ids, cache)
    assert restored == cache.get_seq_length() == 192
    logits = kept(PROMPT[:, restored:], past_key_values=cache).logits[:, -1]
    assert logits.argmax(-1).tolist() == kept.generate(PROMPT, max_new_tokens=1, do_sample=False)[:, -1].tolist()


def test_lossy_pages_are_refused():
    with pytest.raises(ConfigError, match="prompts are kept as they are"):
        penstock.Config.load(kv_format="int8", kv_prefix="1GiB")


@pytest.mark.parametrize(
    ("name", "sizes", "block"),
    [
        ("llama", {}, 64),  # a quarter of its positions
        ("llama", {"max_position_embeddings": 8192}, 1024),
        ("qwen3_moe", {"max_position_embeddings": 8192, "num_experts": 32}, 2048),
        ("qwen3_moe", {"max_position_embeddings": 8192, "num_experts": 64, "num_experts_per_tok": 8}, 2048),
        ("qwen3_moe", {"max_position_embeddings": 1 << 20, "num_experts": 128}, 4096),
        ("gpt2", {}, 64),
    ],
)
def test_blocks_give_experts_enough_tokens(name, sizes, block):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(name, **sizes))
    assert block_of(model) == block
