"""Evicts the block whose next use is probably furthest away (pure).

Belady's rule with an estimate in place of the future. A forward uses each expert once or not at all, and the layers
always follow each other in the same order. So an expert can next be used when its layer comes next. An expert used in
a share p of recent forwards is passed over (1 - p) / p times on average, by each stream that runs. For one sequence the
counts decide. For many sequences, which use nearly every expert in each step, the order of layers decides, and the
experts just used go first.
"""

import heapq
from collections.abc import Generator, Sequence

from ...units import BlockId
from ..prefetch.route import Route
from .counts import Counts, Least


class NextUse:
    """Ranks blocks by the expected forwards until the next use by any stream on ``route``.

    Counts decay by the factor ``decay`` per forward.
    """

    name = "next-use"

    def __init__(self, route: Route, decay: float = 0.98) -> None:
        self._route = route
        self._counts = Counts(decay)
        self._layers: dict[str, Least] = {}  # by module

    def used(self, blocks: Sequence[BlockId]) -> None:
        self._counts.used(blocks)

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
        passed: list[tuple[Least, tuple[float, BlockId]]] = []
        streams = max(1, len(self._route.streams))
        ways = dict(zip(self._layers, self._route.ahead(self._layers), strict=True))
        firsts: list[tuple[float, BlockId]] = []  # the first to evict, of each layer
        for module, layer in self._layers.items():
            if (entry := layer.first()) is not None:
                firsts.append((-ways[module] - self._counts.passed_over(entry[0]) / streams, entry[1]))
        heapq.heapify(firsts)
        try:
            while firsts:
                _, block = firsts[0]
                yield block
                layer = self._layers[block.module]
                if block in layer:
                    passed.append((layer, layer.take()))
                if (entry := layer.first()) is None:
                    heapq.heappop(firsts)
                else:
                    until = ways[block.module] + self._counts.passed_over(entry[0]) / streams
                    heapq.heapreplace(firsts, (-until, entry[1]))
        finally:
            for layer, entry in passed:
                layer.put_back([entry])
