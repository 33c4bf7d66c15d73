"""How to read a drive, chosen from measured rates: backend, depth, largest read (pure).

The order of reads is that of tiering/planner/scheduling.py.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..units import PAGE, MiB, align_up
from .placement.placement import Placement, SizedBlock

ENOUGH = 0.95
"""Fraction of the best rate that is enough: deeper or larger reads would make a demand wait longer."""

LEAST_DEPTH = 2
"""With one read in flight, the drive idles between its end and the start of the next one."""

LARGEST_READ = 8 * MiB
"""Larger reads are no faster."""


class Rate(Protocol):
    """Random reads of ``size`` bytes, ``depth`` at a time."""

    @property
    def backend(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def bytes_per_second(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """Read by ``backend``, ``depth`` reads in flight, neighbouring blocks joined into at most ``size`` bytes."""

    backend: str
    size: int
    depth: int


UNMEASURED = Reading("threads", LARGEST_READ, 4)
"""Without measurements: large reads, four in flight, saturate laptop and cloud drives alike."""


def streamed_lengths(blocks: Iterable[SizedBlock], placement: Placement) -> list[int]:
    """Bytes of each block read while the model runs: its experts, or else its streamed layers."""
    blocks, streamed = list(blocks), set(placement.streamed)
    experts = [block.length for block in blocks if block.id.kind == "expert"]
    return experts or [block.length for block in blocks if block.id in streamed]


def typical_read(lengths: Sequence[int]) -> int:
    """The typical read of blocks of these ``lengths``: their mean in whole pages, at most LARGEST_READ."""
    if not lengths:
        return MiB
    return min(LARGEST_READ, max(PAGE, align_up(sum(lengths) // len(lengths))))


def choose(rates: Sequence[Rate], *, block: int) -> Reading:
    """The least backend, read size and depth that come near the best rate for reads of ``block`` bytes.

    The backend is chosen first, then the size, then the depth. A backend named later in ``rates`` must be clearly
    faster than an earlier one at the same size and depth. Without rates the answer is UNMEASURED.
    """
    if not rates:
        return UNMEASURED
    backend = _fastest(rates)
    own = [rate for rate in rates if rate.backend == backend]
    size = _least_enough({rate.size: _peak(own, rate.size) for rate in own})
    joined = max(size, min(block, LARGEST_READ))
    near = min((rate.size for rate in own), key=lambda size: (abs(size - joined), size))
    depth = _least_enough({rate.depth: rate.bytes_per_second for rate in own if rate.size == near})
    return Reading(backend, size, max(LEAST_DEPTH, depth))


def fixed(reading: Reading, *, backend: str | None = None, depth: int | None = None) -> Reading:
    """``reading`` with the user's choices."""
    return replace(reading, backend=backend or reading.backend, depth=depth or reading.depth)


def _fastest(rates: Sequence[Rate]) -> str:
    table: dict[str, dict[tuple[int, int], float]] = {}
    for rate in rates:
        table.setdefault(rate.backend, {})[rate.size, rate.depth] = rate.bytes_per_second
    first, *others = table
    for other in others:
        both = table[first].keys() & table[other].keys()
        if both and statistics.median(table[first][cell] / table[other][cell] for cell in both) < ENOUGH:
            first = other
    return first


def _peak(rates: Sequence[Rate], size: int) -> float:
    return max(rate.bytes_per_second for rate in rates if rate.size == size)


def _least_enough(rates: dict[int, float]) -> int:
    """The least key whose rate is near the best."""
    best = max(rates.values())
    return min(key for key, rate in rates.items() if rate >= ENOUGH * best)
