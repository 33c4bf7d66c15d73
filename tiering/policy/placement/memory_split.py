"""How weights and KV share a limit on memory (pure).

As long as all of it may be used, both have what they were given. Below that, KV counts with what the pages that there
are could take, so room that nobody uses goes first; of the rest both give the same share of what they can give.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """What of one of them stays at every limit, and what it may have; bytes."""

    floor: int
    ceiling: int


def shared(limit: int, weights: Part, kv: Part, *, wanted: int) -> tuple[int, int]:
    """Bytes for weights and for KV, ``limit`` in all, which is between the sums of floors and ceilings. ``wanted`` is
    what KV could use now."""
    assert weights.floor + kv.floor <= limit <= weights.ceiling + kv.ceiling
    spare = limit - weights.floor - kv.floor
    for_weights = weights.ceiling - weights.floor
    for_kv = min(max(kv.floor, wanted), kv.ceiling) - kv.floor
    if spare >= for_weights + for_kv:
        return weights.ceiling, limit - weights.ceiling
    given = kv.floor + spare * for_kv // (for_weights + for_kv)
    return limit - given, given


def least_kv(capacity: int, newest: int, passing: int) -> int:
    """Bytes of ``capacity`` that KV cannot do without: twice the ``newest`` pages of all layers of a sequence, which
    cannot leave memory, and room for ``passing`` bytes, a quarter at most."""
    return min(capacity, 2 * newest + min(passing, capacity // 4))
