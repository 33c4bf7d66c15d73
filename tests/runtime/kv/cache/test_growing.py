"""Transformers' cache while a model computes: it grows in place, and holds what torch would have concatenated."""

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache, DynamicLayer

from penstock.runtime.kv.cache import growing as growing_module
from penstock.runtime.kv.cache.growing import growing

HEADS, DIM = 2, 4


@contextmanager
def plainly(_: Any) -> Iterator[None]:
    """In place of ``growing``."""
    yield


def states(tokens: int, seed: int, *, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(batch, HEADS, tokens, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def add(cache: DynamicCache, tokens: int, seed: int, around: Any = growing) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad(), around(cache):
        keys, values = cache.update(states(tokens, seed), states(tokens, seed + 1), 0)
    return keys, values


class Step:
    """Things that users do to a cache."""

    @staticmethod
    def crop(cache: DynamicCache) -> DynamicCache:
        if cache.get_seq_length() > 2:
            cache.crop(-2)
        return cache

    @staticmethod
    def copy_deeply(cache: DynamicCache) -> DynamicCache:
        return copy.deepcopy(cache)

    @staticmethod
    def copy_layers(cache: DynamicCache) -> DynamicCache:
        made = copy.copy(cache)
        made.layers = [copy.copy(layer) for layer in cache.layers]
        return made

    @staticmethod
    def repeat(cache: DynamicCache) -> DynamicCache:
        if cache.get_seq_length():
            cache.reorder_cache(torch.tensor([0]))
        return cache

    @staticmethod
    def reset(cache: DynamicCache) -> DynamicCache:
        cache.reset()
        return cache


STEPS = [name for name in vars(Step) if not name.startswith("_")]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add"] * 4 + STEPS), st.integers(1, 90)), min_size=5, max_size=14))
@example([("add", 10), ("add", 1), ("crop", 1), ("add", 1)])
@example([("add", 10), ("add", 1), ("copy_layers", 1), ("add", 1)])
def test_the_numbers_of_a_cache_that_is_copied_for_every_token(steps: list[tuple[str, int]]) -> None:
    """All caches, and all keys that were ever handed out, keep what they had."""
    ours, theirs = DynamicCache(), DynamicCache()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    others: list[tuple[DynamicCache, DynamicCache]] = []
    for number, (name, tokens) in enumerate(steps):
        if name == "add":
            kept += zip(add(ours, tokens, number), add(theirs, tokens, number, plainly), strict=True)
            others = [pair for pair in others if pair[0].layers]
            for one, other in others:
                kept += zip(add(one, 1, -number), add(other, 1, -number, plainly), strict=True)
        elif ours.layers:
            others.append((ours, theirs))
            ours, theirs = getattr(Step, name)(ours), getattr(Step, name)(theirs)
            others = [pair for pair in others if pair[0] is not ours]
        assert all(torch.equal(one, other) for one, other in kept)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_tokens_are_added_where_they_lie() -> None:
    cache = DynamicCache()
    add(cache, 10, 0)
    places = {add(cache, 1, seed)[0].data_ptr() for seed in range(1, 40)}
    assert len(places) == 1
    assert type(cache.layers[0]) is DynamicLayer
    assert vars(cache.layers[0]).keys() == vars(DynamicLayer()).keys() | {"dtype", "device"}


@pytest.mark.parametrize("kind", ["float32 behind bfloat16", "another batch", "a gradient", "a subclass"])
def test_what_torch_concatenates_in_its_own_way(kind: str) -> None:
    def run(around: Any) -> torch.Tensor:
        cache = DynamicCache()
        with around(cache):
            cache.update(states(5, 0), states(5, 1), 0)
            more = states(2, 2)
            if kind == "float32 behind bfloat16":
                more = more.float()
            elif kind == "a gradient":
                more.requires_grad_()
            elif kind == "a subclass":
                more = more.as_subclass(Own)
            elif kind == "another batch":
                cache.batch_repeat_interleave(3)
                more = states(2, 2, batch=3)
            out: torch.Tensor = cache.update(more, more, 0)[0]
        return out

    ours, theirs = run(growing), run(plainly)
    assert torch.equal(ours, theirs)
    assert (type(ours), ours.dtype, ours.requires_grad) == (type(theirs), theirs.dtype, theirs.requires_grad)


class Own(torch.Tensor):
    """Somebody's own kind of tensor."""


def test_a_cache_of_inference_goes_on_without_it() -> None:
    ours, theirs = DynamicCache(), DynamicCache()
    for around, cache in ((growing, ours), (plainly, theirs)):
        for seed in range(3):
            with torch.inference_mode(seed < 2), around(cache):
                keys, _ = cache.update(states(3, seed), states(3, seed), 0)
        assert not keys.is_inference()
    assert torch.equal(ours.layers[0].keys, theirs.layers[0].keys)


def test_keys_that_a_gradient_needs_stay_as_they_were() -> None:
    cache = DynamicCache()
    add(cache, 3, 0)
    keys, _ = add(cache, 1, 1)
    query = torch.randn(1, HEADS, 1, DIM, dtype=torch.bfloat16, requires_grad=True)
    (wanted,) = torch.autograd.grad((query * keys.clone()).sum(), query)
    score = (query * keys).sum()
    add(cache, 1, 2)
    assert torch.equal(torch.autograd.grad(score, query)[0], wanted)


def test_an_update_of_a_users_own_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def update(self: DynamicLayer, keys: torch.Tensor, values: torch.Tensor, *_: Any) -> Any:
        calls.append(1)
        return keys, values

    cache = DynamicCache()
    add(cache, 3, 0)
    monkeypatch.setattr(DynamicLayer, "update", update)
    add(cache, 1, 1)
    assert calls


def test_a_cache_that_is_gone_leaves_no_memory() -> None:
    cache = DynamicCache()
    add(cache, 3, 0)
    add(cache, 1, 0)
    room = weakref.ref(growing_module._ROOMS[cache.layers[0]]["keys"])
    assert room() is not None
    del cache
    gc.collect()
    assert room() is None
