"""The cost model: what limits, and that it moves the right way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.policy.cost import ExpertLayer, Load, Speeds, distinct_experts, predict

SPEEDS = Speeds(flash=1e9, memory=10e9)


def test_all_in_memory_is_limited_by_memory():
    got = predict(Load(5_000_000_000, 0, (), 1.0), SPEEDS, prompt_tokens=8)
    assert (got.tokens_per_second, got.limited_by, got.flash_bytes_per_token, got.hit_ratio) == (2.0, "memory", 0, 1.0)
    assert got.time_to_first_token_s == 0.5


def test_streamed_weights_are_limited_by_flash():
    got = predict(Load(5_000_000_000, 4_000_000_000, (), 1.0), SPEEDS, prompt_tokens=8)
    assert (got.tokens_per_second, got.limited_by) == (0.25, "flash")
    assert got.hit_ratio == pytest.approx(0.2)


def test_experts_miss_with_the_fraction_that_is_not_cached():
    layers = (ExpertLayer(64, 8, 6_400_000_000),) * 2
    got = predict(Load(0, 0, layers, 0.25), SPEEDS, prompt_tokens=1000)
    assert got.memory_bytes_per_token == 1_600_000_000
    assert got.flash_bytes_per_token == 1_200_000_000
    assert got.hit_ratio == 0.25
    assert got.tokens_per_second == pytest.approx(1 / 1.2)
    # A long prompt uses every expert once, and finds none of them in memory.
    assert got.time_to_first_token_s == pytest.approx(12.8)


def test_distinct_experts():
    assert distinct_experts(64, 8, 1) == pytest.approx(8)
    assert distinct_experts(64, 64, 1) == 64
    assert distinct_experts(0, 0, 5) == 0


@given(st.integers(1, 256), st.data(), st.integers(1, 500))
def test_more_tokens_use_more_experts_up_to_all(experts, data, tokens):
    per_token = data.draw(st.integers(1, experts))
    fewer, more = (distinct_experts(experts, per_token, n) for n in (tokens, tokens + 1))
    assert per_token <= fewer + 1e-9 <= more + 2e-9 <= experts + 3e-9


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_cache_is_never_slower(one, other):
    layers = (ExpertLayer(8, 2, 800_000_000),)
    small, large = (predict(Load(1000, 0, layers, share), SPEEDS, prompt_tokens=4) for share in sorted((one, other)))
    assert large.tokens_per_second >= small.tokens_per_second
