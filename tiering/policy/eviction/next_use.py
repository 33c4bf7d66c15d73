"""Whose next use is probably furthest away goes first (pure).

Belady's rule with an estimate in place of the future. A layer's experts are used once in every forward or not at all,
and the layers always follow each other in the same order. So the next time at which an expert may be used is known:
when its layer comes next. Whether it is used then is a matter of how often it was of late: used in a share p of the
forwards, it is passed over (1 - p) / p times on average. For one sequence the counts decide; for many, which use nearly
every expert in each step, the order of the layers does, and the experts just used go first.
"""

import heapq
from collections.abc import Generator

from ...units import BlockId
from ..route import Route
from .counts import Counts, Least

_RARELY = 1e-6
"""The share of forwards given to blocks that were never used."""


class NextUse:
    """Ranks by the expected number of forwards until the next use by any of the streams on ``route``; counts decay by
    ``decay`` per forward."""

    def __init__(self, route: Route, decay: float = 0.98) -> None:
        self._route = route
        self._counts = Counts(decay)
        self._layers: dict[str, Least] = {}  # by module

    def used(self, block: BlockId) -> None:
        self._counts.used(block)

    def inserted(self, block: BlockId) -> None:
        if block.module not in self._layers:
            self._layers[block.module] = Least(self._counts)
        self._layers[block.module].add(block)

    def removed(self, block: BlockId) -> None:
        self._layers[block.module].remove(block)

    def tick(self) -> None:
        if self._counts.tick():
            for layer in self._layers.values():
                layer.rebuild()

    def victims(self) -> Generator[BlockId, None, None]:
        passed: dict[str, list[tuple[float, BlockId]]] = {}
        first: list[tuple[float, BlockId]] = []  # of each layer, the one to go first
        try:
            for module in self._layers:
                self._next(module, passed, first)
            while first:
                _, block = heapq.heappop(first)
                yield block
                self._next(block.module, passed, first)
        finally:
            for module, taken in passed.items():
                self._layers[module].put_back(taken)

    def _next(
        self, module: str, passed: dict[str, list[tuple[float, BlockId]]], first: list[tuple[float, BlockId]]
    ) -> None:
        entry = self._layers[module].take()
        if entry is None:
            return
        passed.setdefault(module, []).append(entry)
        count, block = entry
        share = max(self._counts.share(count), _RARELY)
        heapq.heappush(first, (-(self._route.ahead(module) + (1 - share) / share), block))
