"""Measure how well a model suits expert offloading, from its routing trace (pure; numpy).

Two measures of "Not All Models Suit Expert Offloading: On Local Routing Consistency of Mixture-of-Expert Models". Both
look at every segment of m consecutive tokens of a sequence, wherever it starts, and at how many of its tokens use an
expert: the *frequency*, 0 to m.

- *Segment Routing Best Performance* (SRP): for each segment a group of experts is fixed and predicted to be used by all
  of its tokens. SRP is the best F1 score over all (segment, expert, token) that any choice of groups reaches: all pairs
  of segment and expert with at least a certain frequency, the same everywhere. The *size ratio* is how large the groups
  are on average, over the experts that a token uses; with a given average size, the pairs of highest frequency are
  taken.
- *Segment Cache Best Hit Rate* (SCH): a cache of a given size is filled with the most frequent experts of each segment,
  in full knowledge of it, and not changed within it. SCH is the share of all uses that it has.

Several layers together share one group or cache: it is divided over them as is best for the segment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .routed import RoutedLayer

SEGMENTS = (1, 4, 16, 64, 256)
"""Segment lengths of the report, in tokens."""
KNEE_SEGMENT = 16
"""The segment length at which the paper compares models. The knee is found for it."""

_AT_ONCE = 1 << 22
"""The most frequencies sorted at a time, to bound the memory."""

Uses = npt.NDArray[np.bool_]
"""[tokens, experts]: whether the token went through the expert."""
Frequencies = npt.NDArray[np.uint16]
Pairs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Routing:
    """SRP for segments of one length. ``recall`` and ``size_ratio`` are those of the groups with the best ``f1``."""

    f1: float
    recall: float
    size_ratio: float


@dataclass(frozen=True, slots=True)
class Balance:
    """How evenly a layer uses its experts.

    ``entropy`` of their shares is 1 if all are used alike, 0 if one has all uses. ``largest`` is the largest share.
    """

    entropy: float
    largest: float


def used(layers: Sequence[RoutedLayer]) -> Uses:
    """Return the uses of all ``layers``, one layer's experts after the other: bool [tokens, experts of all layers]."""
    return np.concatenate([layer.used() for layer in layers], axis=1)


def frequencies(uses: Uses, sequences: Sequence[int], segment: int) -> Iterator[Frequencies]:
    """Count the tokens that use each expert, in every segment of ``segment`` tokens within one of ``sequences``.

    ``uses`` is [tokens, experts]. ``sequences`` are lengths in tokens. Yields pieces [segments, experts], uint16.
    """
    start = 0
    for length in sequences:
        if length >= segment:
            counts = np.zeros((length + 1, uses.shape[1]), dtype=np.uint16)
            np.cumsum(uses[start : start + length], axis=0, dtype=np.uint16, out=counts[1:])
            yield counts[segment:] - counts[:-segment]
        start += length


def pairs_by_frequency(uses: Uses, sequences: Sequence[int], segment: int) -> Pairs | None:
    """Count the pairs of an expert and a segment of ``segment`` tokens with frequency 0, 1, .. ``segment``: int64
    [segment + 1]. None without such a segment."""
    pairs = np.zeros(segment + 1, dtype=np.int64)
    for counts in frequencies(uses, sequences, segment):
        pairs += np.bincount(counts.ravel(), minlength=segment + 1)
    return pairs if pairs.any() else None


def segment_routing(pairs: Pairs) -> Routing:
    """Compute SRP from ``pairs_by_frequency``."""
    segment = len(pairs) - 1
    hits = np.cumsum((pairs * np.arange(segment + 1))[::-1])[::-1]  # uses in all pairs with at least that frequency
    predicted = np.cumsum(pairs[::-1])[::-1] * segment
    scores = 2 * hits / np.maximum(predicted + hits[0], 1)
    best = int(scores.argmax())
    total = max(int(hits[0]), 1)
    return Routing(float(scores[best]), float(hits[best] / total), float(predicted[best] / total))


def segment_routing_of_size(pairs: Pairs, share: float) -> Routing:
    """Compute SRP as ``segment_routing``, with groups that have this ``share`` of the experts on average."""
    segment = len(pairs) - 1
    taken = min(share, 1.0) * float(pairs.sum())
    left, hits = taken, 0.0
    for frequency in range(segment, 0, -1):
        here = min(left, float(pairs[frequency]))
        hits, left = hits + here * frequency, left - here
    total = max(float(pairs @ np.arange(segment + 1)), 1.0)
    predicted = taken * segment
    return Routing(2 * hits / (predicted + total), hits / total, predicted / total)


def segment_cache(uses: Uses, sequences: Sequence[int], segment: int) -> npt.NDArray[np.float64] | None:
    """Compute SCH of ``uses`` [tokens, experts] for segments of ``segment`` tokens, with caches of 1, 2, .. all
    experts: [experts]. None without such a segment."""
    hits = np.zeros(uses.shape[1], dtype=np.int64)
    found = False
    for counts in frequencies(uses, sequences, segment):
        step = max(1, _AT_ONCE // counts.shape[1])
        for start in range(0, len(counts), step):
            hits += np.sort(counts[start : start + step], axis=1).sum(axis=0, dtype=np.int64)[::-1]
            found = True
    return np.cumsum(hits) / max(int(hits.sum()), 1) if found else None


def knee(hit_rates: npt.NDArray[np.float64]) -> int:
    """Return the cache size, in experts, after which more memory pays little.

    ``hit_rates`` are those of caches of 1, 2, .. all experts. At the knee they are farthest above the share of experts
    in the cache ("Finding a 'Kneedle' in a Haystack"). Each further expert adds less than it would to a cache of
    experts taken at random.
    """
    shares = np.arange(1, len(hit_rates) + 1) / len(hit_rates)
    gain = hit_rates - shares
    return int(np.flatnonzero(gain >= gain.max() - 1e-12)[0]) + 1


def balance(uses: Uses) -> Balance:
    """Compute the balance of ``uses`` [tokens, experts]."""
    shares = uses.sum(axis=0) / max(int(uses.sum()), 1)
    some = shares[shares > 0]
    entropy = float(-(some * np.log(some)).sum() / np.log(len(shares))) if len(shares) > 1 else 1.0
    return Balance(abs(entropy), float(shares.max()))
