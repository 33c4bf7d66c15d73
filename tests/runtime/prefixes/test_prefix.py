"""A restored prefix gives the bits of a prompt that was computed from its beginning, in the same blocks."""

import dataclasses
import subprocess
import sys
import threading

import pytest
import torch

from penstock.runtime.loading.load import load
from penstock.runtime.prefixes import prefix as prefix_module
from penstock.runtime.prefixes.prefill import prefill
from penstock.runtime.prefixes.prefix import Prefixes
from penstock.tiering.errors import PrefixError
from penstock.tiering.store.prefixes.prefixes import PrefixStore
from penstock.tiering.units import MiB
from tests.support.prefixed_models import BLOCK, continued, fresh, model_of, prefixes_of, saved, tokens
from tests.support.tiny_models import save_tiny

WITHOUT_STATE = ("llama", "deepseek_v3", "gpt2")
WITH_STATE = ("gemma3_text", "qwen3_next", "gpt_oss")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WITHOUT_STATE + WITH_STATE)
def test_bits_are_those_of_a_cold_run(name, dtype, tmp_path):
    model, prompt = model_of(name, dtype), tokens(110)
    with prefixes_of(model, tmp_path) as prefixes:
        saved(model, prefixes, prompt[:96])
    with prefixes_of(model, tmp_path) as again:
        for continuation in ([], tokens(20, 1)):
            whole = [*prompt[: 110 - 7 * bool(continuation)], *continuation]
            cache = fresh(model)
            assert again.restore(whole, cache) == 96 == cache.get_seq_length()
            for warm, cold in zip(continued(model, whole, cache), continued(model, whole, fresh(model)), strict=True):
                assert torch.equal(warm, cold)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_greedy_text_is_that_of_a_cold_run_at_ten_lengths(name, tmp_path):
    """Through transformers' own generate, which computes what is left of a prompt at once."""
    model, prompt = model_of(name), tokens(200)
    with prefixes_of(model, tmp_path) as prefixes:
        for length in (32, 64, 96, 128, 192):
            saved(model, prefixes, prompt[:length])
        for length in (33, 40, 64, 65, 90, 97, 130, 150, 193, 200):
            cache, ids = fresh(model), torch.tensor([prompt[:length]])
            assert prefixes.restore(prompt[:length], cache) > 0
            warm = model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=False)
            assert torch.equal(warm, model.generate(ids, max_new_tokens=8, do_sample=False))


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_at_least_one_token_is_left_to_compute(name, tmp_path):
    model, prompt = model_of(name), tokens(64)
    with prefixes_of(model, tmp_path) as prefixes:
        saved(model, prefixes, prompt[:32])
        saved(model, prefixes, prompt)
        assert prefixes.restore(prompt, fresh(model)) == 32
        assert prefixes.restore([*prompt, 5], fresh(model)) == 64
        assert prefixes.restore(prompt[:32], fresh(model)) == 0


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_next", "deepseek_v3"])
def test_a_paged_cache_is_stored_and_filled_too(name, tmp_path):
    folder, prompt = save_tiny(name, tmp_path / "checkpoint"), tokens(110)
    with load(folder, store=tmp_path / "store", host_memory="64MiB", kv_host_memory="4MiB") as model:
        paged = model.penstock.paged
        with prefixes_of(model, tmp_path) as prefixes:
            cache = paged.new_cache()
            prefill(model, prompt[:96], cache, block=BLOCK)
            prefixes.save(prompt[:96], cache)
            cache = paged.new_cache()
            assert prefixes.restore(prompt, cache) == 96 == cache.get_seq_length()
            warm = continued(model, prompt, cache)
            assert all(map(torch.equal, warm, continued(model, prompt, paged.new_cache())))


def test_whoever_differs_finds_nothing(tmp_path):
    model, prompt = model_of("llama"), tokens(40)
    with prefixes_of(model, tmp_path) as prefixes:
        saved(model, prefixes, prompt)
    others = [prefixes_of(model, tmp_path, weights="v"), prefixes_of(model, tmp_path, salt="me")]
    others.append(prefixes_of(model_of("llama", torch.bfloat16), tmp_path))
    rope = model_of("llama")
    rope.config.rope_parameters["rope_theta"] = 5.0
    others.append(prefixes_of(rope, tmp_path))
    for other in others:
        with other:
            assert other.restore(prompt, fresh(model)) == 0
    with prefixes_of(model, tmp_path) as same:
        assert same.restore(prompt, fresh(model)) == 32


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_the_second_prompt_is_stored_the_third_restored(name, tmp_path):
    model, shared = model_of(name), tokens(70)
    with prefixes_of(model, tmp_path) as prefixes:
        for number, expected in enumerate((0, 0, 64)):
            prompt, cache = [*shared, *tokens(30, number + 1)], fresh(model)
            assert prefixes.restore(prompt, cache) == expected
            stop = prefixes.find_stop(prompt)
            assert stop == (64 if number == 1 else 0)
            prefixes.note_prefill(100, 10.0)
            if stop and name == "gemma3_text":
                prefill(model, prompt[:stop], cache, block=BLOCK)
                prefixes.offer(prompt, cache)
                prefill(model, prompt, cache, block=BLOCK)
            else:
                prefill(model, prompt, cache, block=BLOCK)
                prefixes.offer(prompt, cache)
            prefixes.flush()
        stats = prefixes.stats()
    assert (stats.prompts, stats.hits, stats.restored, stats.problem) == (3, 1, 64, "")
    assert stats.written > 0


def test_what_takes_longer_to_read_is_computed(tmp_path):
    model, prompt = model_of("llama"), tokens(70)
    with prefixes_of(model, tmp_path) as prefixes:
        saved(model, prefixes, prompt)
        prefixes.note_prefill(1_000_000, 1e-3)
        prefixes.flush()
        cache = fresh(model)
        assert prefixes.restore(prompt, cache) == 0
        assert cache.get_seq_length() == 0
        assert prefixes.stats().declined == 1
        for _ in range(8):
            prefixes.note_prefill(10, 100.0)
        prefixes.flush()
        assert prefixes.restore(prompt, cache) == 64


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_damage_leaves_a_fresh_cache(name, tmp_path):
    model, prompt = model_of(name), tokens(100)
    with prefixes_of(model, tmp_path) as prefixes:
        saved(model, prefixes, prompt[:96])
        (path,) = prefixes.store.folder.glob("*.kv")
        raw = bytearray(path.read_bytes())
        raw[-5000] ^= 1
        path.write_bytes(raw)
        cache = fresh(model)
        done = prefixes.restore(prompt, cache)
        assert done == cache.get_seq_length() == (64 if name == "llama" else 0)
        assert torch.equal(
            prefill(model, prompt, cache, block=BLOCK), prefill(model, prompt, fresh(model), block=BLOCK)
        )


def test_a_layer_that_is_lacking_is_a_miss(tmp_path):
    model, prompt = model_of("llama"), tokens(40)
    cache = fresh(model)
    prefill(model, prompt, cache, block=BLOCK)
    with prefixes_of(model, tmp_path) as prefixes:
        contents = prefix_module.take_contents(cache, BLOCK)
        short = dataclasses.replace(contents, parts=contents.parts[:-2], cuts=contents.cuts[:-2])
        chain = prefix_module.chain_of(prefixes.root, prompt, BLOCK)
        assert prefixes._write(chain, short, explicit=True) > 0
        assert prefixes.restore(prompt, fresh(model)) == 0


def test_what_is_offered_does_not_change_with_the_model_that_goes_on(tmp_path, monkeypatch):
    model, prompt = model_of("qwen3_next"), tokens(100)
    go_on, writing = threading.Event(), Prefixes._write

    def late(self, *args, **options):
        assert go_on.wait(20)
        return writing(self, *args, **options)

    monkeypatch.setattr(Prefixes, "_write", late)
    with prefixes_of(model, tmp_path) as prefixes:
        prefixes.offer(prompt, fresh(model))
        prefixes.flush()
        cache = fresh(model)
        prefill(model, prompt[:96], cache, block=BLOCK)
        prefixes.offer(prompt, cache)
        continued(model, prompt, cache)
        go_on.set()
        prefixes.flush()
        prefixes.note_prefill(1, 1e3)
    with prefixes_of(model, tmp_path) as again:
        cache = fresh(model)
        assert again.restore(prompt, cache) == 96
        assert torch.equal(
            prefill(model, prompt, cache, block=BLOCK), prefill(model, prompt, fresh(model), block=BLOCK)
        )


def test_a_failing_drive_does_not_reach_the_model(tmp_path, monkeypatch):
    model, prompt = model_of("llama"), tokens(70)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penstock.kernels.io.directwrite.DirectWriter.write", full)
    with prefixes_of(model, tmp_path) as prefixes:
        for _ in range(2):
            cache = fresh(model)
            prefill(model, prompt, cache, block=BLOCK)
            prefixes.offer(prompt, cache)
            prefixes.flush()
        assert "full" in prefixes.stats().problem


def test_what_cannot_be_saved_is_said(tmp_path):
    model = model_of("gemma3_text")
    with prefixes_of(model, tmp_path) as prefixes:
        cache = fresh(model)
        prefill(model, tokens(40), cache, block=BLOCK)
        with pytest.raises(PrefixError, match="multiple of 32"):
            prefixes.save(tokens(40), cache)
        with pytest.raises(PrefixError, match="less than a block"):
            prefixes.save(tokens(9), cache)
        batch = fresh(model)
        model(torch.tensor([tokens(32), tokens(32)]), past_key_values=batch)
        with pytest.raises(PrefixError, match="cannot be stored"):
            prefixes.save(tokens(32), batch)


def test_processes_that_share_a_store_write_the_same_text(tmp_path):
    """Four at once, one of them killed again and again while it writes."""
    code = [sys.executable, "-m", "tests.support.kept_prompts_child", str(tmp_path)]
    done = subprocess.run(code, check=True, capture_output=True, text=True, timeout=120)
    restored, killed = map(int, done.stdout.split())
    assert restored > 0
    assert killed > 0
    assert not PrefixStore(tmp_path, MiB).verify()
