"""Routing made up for a model of which there is no trace (pure): as even, and as repetitive, as a trained one's.

A router's score for an expert is a part of its own, which makes some experts more popular than others, and a part that
changes from token to token but is remembered a little; the highest scores are chosen. Both parts are normal, so the
assumption is two numbers. They make caches of an eighth, a quarter and half of all experts hit about as often as on
examples/tiny-moe (docs/profile.md).
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .outline import ExpertLayer
from .routes import RoutedLayer, Routes, narrow

POPULARITY = 0.75
"""Standard deviation of an expert's own part, that of the changing part being 1."""
MEMORY = 0.1
"""Correlation of the changing part from one token to the next."""


def assumed_routes(layers: Sequence[ExpertLayer], tokens: int, *, seed: int = 0) -> Routes:
    """Routing of ``tokens`` tokens, in one sequence, each decoded alone. Equal arguments give equal routing."""
    chance = np.random.default_rng(seed)
    found = []
    for layer in layers:
        own = POPULARITY * chance.standard_normal(layer.experts)
        changing = chance.standard_normal((tokens, layer.experts))
        for before, now in pairwise(changing):
            now *= (1 - MEMORY**2) ** 0.5
            now += MEMORY * before
        best = np.argsort(-(own + changing), axis=1)[:, : layer.per_token]
        found.append(RoutedLayer(layer.path, layer.experts, narrow(best, layer.experts), None))
    return Routes("assumed", "made up", tuple(found), (1,) * tokens, (tokens,))
