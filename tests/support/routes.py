"""Routing traces made up for tests."""

import numpy as np

from penstock.runtime.routing.routed import RoutedLayer, encode, narrow
from penstock.runtime.routing.routes import Routes


def made_up(
    tokens: int = 40,
    *,
    layers: int = 2,
    experts: int = 8,
    top_k: int = 2,
    seed: int = 0,
    sequences: tuple[int, ...] = (),
) -> Routes:
    """Routing at random; ``sequences`` of so many tokens, each a single forward, or one."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(layers):
        scores = random.random((tokens, experts), dtype=np.float32)
        chosen = narrow(np.argsort(-scores, axis=1)[:, :top_k], experts)
        probabilities = scores / scores.sum(axis=1, keepdims=True)
        found.append(RoutedLayer(f"model.layers.{number}.mlp.experts", experts, chosen, encode(probabilities)))
    sequences = sequences or (tokens,)
    assert sum(sequences) == tokens
    return Routes("made_up", "noise", tuple(found), sequences, sequences)
