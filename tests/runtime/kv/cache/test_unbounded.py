"""Caches that transformers keeps: what they take is known, and said when it passes the memory."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

import penstock
from penstock.runtime.cli.main import main
from penstock.runtime.kv.cache.unbounded import NEGLIGIBLE, Unbounded
from tests.support.paged import paged
from tests.support.prompts import PROMPT
from tests.support.tiny_models import save_tiny

KiB, MiB = 1 << 10, 1 << 20
IDS = torch.randint(3, 300, (2, 200), generator=torch.Generator().manual_seed(1))
TOKEN = 2 * 2 * 2 * 16 * 4
"""Bytes of a token of the tiny Llama: two layers, keys and values, two heads of 16 in float32."""
BUDGET = 1 * MiB
ROOM = 64
"""Tokens for which a cache that grows has memory ready."""


@pytest.fixture
def model(tiny_dense_folder: Path, store: Path) -> Iterator[PreTrainedModel]:
    with penstock.load(tiny_dense_folder, store=store, host_memory=BUDGET) as model:
        yield model


def taken(model: PreTrainedModel) -> int:
    return model.penstock.stats().kv_unbounded_bytes


def test_a_forward_has_what_its_cache_holds_until_that_is_gone(model: PreTrainedModel) -> None:
    assert taken(model) == 0
    past = model(IDS, use_cache=True).past_key_values
    assert taken(model) == 2 * 200 * TOKEN
    model(IDS[:, :1], past_key_values=past)
    assert taken(model) == 2 * (200 + ROOM) * TOKEN
    other = model(input_ids=IDS[:1, :10], past_key_values=model.penstock.cache()).past_key_values
    assert taken(model) == (2 * (200 + ROOM) + 10) * TOKEN
    del past
    assert taken(model) == 10 * TOKEN
    del other
    assert (taken(model), model.penstock.stats().kv_unbounded_peak_bytes) == (0, (2 * (200 + ROOM) + 10) * TOKEN)
    model(IDS, use_cache=False)
    assert taken(model) == 0


def test_generate(model: PreTrainedModel) -> None:
    model.generate(IDS[:, :50], max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
    stats = model.penstock.stats()
    assert (stats.kv_unbounded_bytes, stats.kv_unbounded_peak_bytes) == (0, 2 * (50 + ROOM) * TOKEN)


def test_pages_are_not_counted(tiny_dense_folder: Path, store: Path) -> None:
    with paged(tiny_dense_folder, store, "512KiB") as model:
        past = model(IDS, use_cache=True).past_key_values
        stats = model.penstock.stats()
        assert past.get_seq_length() == 200
        assert stats.kv_host_bytes > 0 == stats.kv_unbounded_peak_bytes


def test_states_beside_pages_are(tmp_path: Path, store: Path) -> None:
    """Layers with recurrent states have them in memory whatever becomes of the KV of the others."""
    with paged(save_tiny("qwen3_next", tmp_path), store, "512KiB") as model:
        past = model(IDS, use_cache=True).past_key_values
        states = [
            tensor
            for layer in past.layers
            for kind in ("conv_states", "recurrent_states")
            for tensor in getattr(layer, kind, {}).values()
        ]
        assert taken(model) == sum(tensor.nbytes for tensor in states) > 0


def test_a_view_counts_as_the_memory_that_it_keeps_and_once() -> None:
    whole, values = torch.zeros(1, 2, 100, 16), torch.zeros(1, 2, 100, 16)
    cache, other = DynamicCache([(whole, whole)]), DynamicCache([(whole, whole)])
    (layer,), (last,) = cache.layers, other.layers
    layer.keys, layer.values = whole[:, :, -10:], values
    caches = Unbounded()
    assert caches.add(cache) == whole.nbytes + values.nbytes
    layer.values = whole
    assert caches.size() == whole.nbytes
    last.keys = last.values = values
    both = EncoderDecoderCache(cache, other)
    assert caches.add(both) == whole.nbytes + values.nbytes
    layer.keys = layer.values = torch.zeros(0)
    assert caches.add(cache) == whole.nbytes + values.nbytes, "the other one has it yet"
    assert caches.size() == values.nbytes
    del both, last, other
    assert caches.add(None) == 0
    assert caches.peak == whole.nbytes + values.nbytes


def test_a_forward_looks_at_its_own_cache_alone() -> None:
    caches, looked = Unbounded(), []

    class Watched(DynamicCache):
        def __getattribute__(self, name: str) -> object:
            looked.append(self)
            return super().__getattribute__(name)

    some = [Watched([(torch.zeros(1, 2, 5, 16),) * 2]) for _ in range(4)]
    for cache in some:
        looked.clear()
        caches.add(cache)
        assert {id(each) for each in looked} == {id(cache)}


def test_what_is_none_of_transformers_caches_is_left_alone() -> None:
    caches = Unbounded()
    assert caches.add(None) == caches.add(((torch.zeros(3), torch.zeros(3)),)) == 0


def test_memory_that_is_passed_is_said_once(model: PreTrainedModel) -> None:
    stats = model.penstock.stats()
    room = int(BUDGET * (1 + NEGLIGIBLE)) - stats.resident_bytes
    tokens = room // TOKEN
    ids = IDS.reshape(1, -1).repeat(1, 8)[:, : tokens + 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        past = model(ids[:, :tokens], use_cache=True).past_key_values
    with pytest.warns(UserWarning, match=r"\[kv\] host"):
        model(ids[:, tokens:], past_key_values=past)
    said = model.penstock.stats().kv_unbounded_problem
    assert "host_memory of 1.00 MiB" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ids[:, :1], past_key_values=past)
    assert model.penstock.stats().kv_unbounded_problem == said


def test_the_command_line_says_it_after_the_text(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-n", "4", "--store", str(tmp_path / "store"), "--host-memory", "660KiB"]
    for words, said in ((1, False), (60, True)):
        capsys.readouterr()
        assert main(["generate", str(checkpoint), "-p", " ".join([PROMPT] * words), *options]) == 0
        assert ("penstock: note: keys and values take" in capsys.readouterr().err) == said
