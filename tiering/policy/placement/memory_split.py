"""Splits a memory limit between weights and KV (pure).

At the full limit both have their ceilings. Below it, KV counts with the bytes that its present pages can use, so unused
room goes first. Then both give the same share of the bytes that they can give.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """Bytes of weights or of KV: ``floor`` stays at every limit, ``ceiling`` is the most."""

    floor: int
    ceiling: int


def split_limit(limit: int, weights: MemoryShare, kv: MemoryShare, *, wanted: int) -> tuple[int, int]:
    """Bytes for weights and bytes for KV, ``limit`` in all. KV can use ``wanted`` bytes now.

    ``limit`` lies between the sum of floors and the sum of ceilings.
    """
    assert weights.floor + kv.floor <= limit <= weights.ceiling + kv.ceiling
    spare = limit - weights.floor - kv.floor
    for_weights = weights.ceiling - weights.floor
    for_kv = min(max(kv.floor, wanted), kv.ceiling) - kv.floor
    if spare >= for_weights + for_kv:
        return weights.ceiling, limit - weights.ceiling
    given = kv.floor + spare * for_kv // (for_weights + for_kv)
    return limit - given, given


def least_kv(capacity: int, newest: int, passing: int) -> int:
    """The least bytes of ``capacity`` that KV needs.

    That is twice the ``newest`` pages of all layers of a sequence, which cannot leave memory, and ``passing`` bytes for
    pages that are read and dropped again, at most a quarter.
    """
    return min(capacity, 2 * newest + min(passing, capacity // 4))
