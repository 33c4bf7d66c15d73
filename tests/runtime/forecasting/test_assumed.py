"""The routing that is assumed where there is no trace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.forecasting.assumed import assumed_routes
from penstock.tiering.planner.arrangement import ExpertLayer
from penstock.tiering.policy.eviction import EVICTION
from penstock.tiering.policy.hits import hit_ratio


@given(st.integers(1, 3), st.integers(1, 300), st.data(), st.integers(1, 20))
def test_every_token_uses_as_many_experts_as_the_model_says(layers, experts, data, tokens):
    per_token = data.draw(st.integers(1, experts))
    routes = assumed_routes([ExpertLayer(f"l.{n}", experts, per_token, 1) for n in range(layers)], tokens)
    assert routes.tokens == tokens
    assert [layer.path for layer in routes.layers] == [f"l.{n}" for n in range(layers)]
    for layer in routes.layers:
        assert layer.used().sum(axis=1).tolist() == [per_token] * tokens


def test_equal_seeds_give_equal_routing():
    layers = [ExpertLayer("a", 16, 4, 1)]
    one, again, other = (assumed_routes(layers, 9, seed=seed).layers[0].chosen.tolist() for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize(("share", "expected"), [(1 / 8, 0.235), (1 / 4, 0.493), (1 / 2, 0.807)])
def test_caches_hit_as_often_as_on_the_trained_model(share, expected):
    """Two texts, 1200 tokens each (docs/explanation/routing.md): 23.5 and 23.6, 48.6 and 49.9, 80.2 and 81.1 %."""
    layers = [ExpertLayer(f"l.{n}", 16, 4, 1) for n in range(6)]
    steps = list(assumed_routes(layers, 300).steps())
    assert hit_ratio(EVICTION["auto"], int(96 * share), steps) == pytest.approx(expected, abs=0.03)


def test_the_less_even_the_more_a_cache_hits():
    layers = [ExpertLayer(f"l.{n}", 16, 4, 1) for n in range(6)]
    ratios = []
    for popularity in (0.0, 0.8, 1.6):
        steps = list(assumed_routes(layers, 200, popularity=popularity).steps())
        ratios.append(hit_ratio(EVICTION["auto"], 24, steps))
    even, assumed, uneven = ratios
    assert even < assumed - 0.1 < uneven - 0.2
