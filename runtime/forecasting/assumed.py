"""Assumed routing, for a model without a trace (pure): as even and as repetitive as that of a trained model.

A router's score for an expert has a constant part, which makes some experts more popular than others, and a part that
changes from token to token with a little memory. The highest scores are chosen. Both parts are normal, so the
assumption is two numbers. With them, caches of an eighth, a quarter and half of all experts hit as often as on
examples/tiny-moe reading English and code, within two points (docs/explanation/routing.md).
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from ...tiering.planner.arrangement import ExpertLayer
from ..routing.routed import RoutedLayer, RoutedTokens, narrow

POPULARITY = 0.8
"""Standard deviation of the constant parts, which are spread evenly. That of the changing part is 1."""
MEMORY = 0.1
"""Correlation of the changing part from one token to the next."""

_NORMAL = NormalDist()


def assumed_routes(
    layers: Sequence[ExpertLayer], tokens: int, *, popularity: float = POPULARITY, seed: int = 0
) -> RoutedTokens:
    """Make up the routing of ``tokens`` tokens, in one sequence, each decoded alone. The larger ``popularity``, the
    less even it is. Equal arguments give equal routing."""
    chance = np.random.default_rng(seed)
    found = []
    for layer in layers:
        places = chance.permutation(layer.experts)
        own = np.array([popularity * _NORMAL.inv_cdf((place + 0.5) / layer.experts) for place in places])
        changing = chance.standard_normal((tokens, layer.experts))
        for before, now in pairwise(changing):
            now *= (1 - MEMORY**2) ** 0.5
            now += MEMORY * before
        best = np.argsort(-(own + changing), axis=1)[:, : layer.per_token]
        found.append(RoutedLayer(layer.path, layer.experts, narrow(best, layer.experts), None))
    return RoutedTokens("assumed", "made up", tuple(found), (1,) * tokens, (tokens,))
