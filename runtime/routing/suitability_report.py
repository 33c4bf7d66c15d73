"""The report of ``penstock profile`` about a routing trace (pure): as values for machines, as text for people."""

from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np

from ...tiering.policy.eviction import EVICTION
from ...tiering.policy.hits import hit_ratio
from .routed import RoutedLayer, RoutedTokens
from .suitability import (
    KNEE_SEGMENT,
    SEGMENTS,
    Pairs,
    Uses,
    balance,
    knee,
    pairs_by_frequency,
    segment_cache,
    segment_routing,
    segment_routing_of_size,
    used,
)

SHARES = tuple(Fraction(eighth, 8) for eighth in range(1, 9))
"""Cache sizes of the report, as shares of all experts."""
REPLAYED = (Fraction(1, 8), Fraction(1, 4), Fraction(1, 2))
"""Cache sizes for the trials of eviction policies, as shares of all experts."""
POLICIES = ("lru", "lfu", "auto")

KNEE_RULE = (
    f"beyond it an expert's memory adds less to SCH, segments of {KNEE_SEGMENT} tokens, than an average expert's would"
)


def report(routes: RoutedTokens) -> dict[str, Any]:
    """Return the whole report, as ``--json`` has it. Segments longer than any sequence are left out."""
    experts = sum(layer.experts for layer in routes.layers)
    per_token = sum(layer.top_k for layer in routes.layers)
    uses = used(routes.layers)
    curves, pairs = _curves(uses, routes.sequences), _pairs(uses, routes.sequences)
    slots = {share: max(1, int(experts * share)) for share in SHARES}
    steps = list(routes.steps())
    replayed = {
        share: {name: hit_ratio(EVICTION[name], slots[share], steps) for name in POLICIES} for share in REPLAYED
    }
    return {
        "text": routes.text,
        "model_type": routes.model_type,
        "tokens": routes.tokens,
        "sequences": len(routes.sequences),
        "forwards": len(routes.forwards),
        "layers": len(routes.layers),
        "experts": experts,
        "experts_per_token": per_token,
        "top_k": _one_or_all([layer.top_k for layer in routes.layers]),
        "experts_per_layer": _one_or_all([layer.experts for layer in routes.layers]),
        "probabilities": sum(layer.codes is not None for layer in routes.layers),
        "segment_routing": {segment: asdict(segment_routing(each)) for segment, each in pairs.items()},
        "cache": [
            {
                "experts": size,
                "share": float(share),
                "size_ratio": size / per_token,
                "segment_cache": {segment: curve[size - 1] for segment, curve in curves.items()},
                "segment_routing": {
                    segment: asdict(segment_routing_of_size(each, size / experts)) for segment, each in pairs.items()
                },
                **replayed.get(share, {}),
            }
            for share, size in slots.items()
        ],
        "knee": _knee(curves.get(KNEE_SEGMENT), per_token),
        "by_layer": [_layer(layer, routes.sequences) for layer in routes.layers],
    }


def _curves(uses: Uses, sequences: Sequence[int]) -> dict[int, list[float]]:
    """Return SCH for caches of 1, 2, .. all experts, by segment length."""
    found = {segment: segment_cache(uses, sequences, segment) for segment in SEGMENTS}
    return {segment: curve.tolist() for segment, curve in found.items() if curve is not None}


def _pairs(uses: Uses, sequences: Sequence[int]) -> dict[int, Pairs]:
    """Return the pairs from which SRP is computed, by segment length."""
    found = {segment: pairs_by_frequency(uses, sequences, segment) for segment in SEGMENTS}
    return {segment: pairs for segment, pairs in found.items() if pairs is not None}


def _knee(curve: list[float] | None, per_token: int) -> dict[str, Any] | None:
    if curve is None:
        return None
    size = knee(np.array(curve))
    return {
        "experts": size,
        "share": size / len(curve),
        "size_ratio": size / per_token,
        "segment_cache": curve[size - 1],
        "rule": KNEE_RULE,
    }


def _layer(layer: RoutedLayer, sequences: Sequence[int]) -> dict[str, Any]:
    """Return one layer's figures. Its caches hold only its own experts."""
    uses = layer.used()
    evenness = balance(uses)
    curves = _curves(uses, sequences)
    curve = curves.get(KNEE_SEGMENT)
    return {
        "path": layer.path,
        "experts": layer.experts,
        "top_k": layer.top_k,
        "entropy": evenness.entropy,
        "largest_share": evenness.largest,
        "router_entropy": _router_entropy(layer),
        "segment_routing": {segment: segment_routing(pairs).f1 for segment, pairs in _pairs(uses, sequences).items()},
        "segment_cache": {
            float(share): {segment: curve[max(1, int(layer.experts * share)) - 1] for segment, curve in curves.items()}
            for share in SHARES
        },
        "knee": None if curve is None else knee(np.array(curve)),
    }


def _router_entropy(layer: RoutedLayer) -> float | None:
    """Return how undecided the router is about a token on average, 0 to 1. None if its output was not recognised."""
    probabilities = layer.probabilities()
    if probabilities is None or layer.experts < 2:
        return None
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return float(-(probabilities * np.log(probabilities)).sum(axis=1).mean() / np.log(layer.experts))


def _one_or_all(values: list[int]) -> int | list[int]:
    """Return the value that all layers share, or a list with each layer's."""
    return values[0] if len(set(values)) == 1 else values
