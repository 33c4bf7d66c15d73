"""Contexts of simulated streams: keys and values in pages, or in memory beside them (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..kv.setup import KVSetup

MOST_PAGES = 1500
"""Full pages of a context that are simulated. Of a longer one several that lie side by side count as one."""


@dataclass(frozen=True, slots=True)
class KVLayer:
    """One layer's KV: a page of ``keys`` bytes, and one of ``values`` bytes, for each ``tokens`` tokens. With a
    ``window`` a token looks at that many tokens at most."""

    keys: int
    values: int
    tokens: int
    window: int | None = None

    def first_page(self, length: int) -> int:
        """Number of the first page that the next token of a context of ``length`` tokens looks at."""
        return 0 if self.window is None else max(0, length - self.window + 1) // self.tokens


@dataclass(frozen=True, slots=True)
class Context:
    """``length`` tokens of every stream, at which each further token looks, in the ``layers`` that have KV. ``setup``
    is that of the pages; None: all KV is in memory, and not in pages."""

    layers: Sequence[KVLayer]
    length: int
    setup: KVSetup | None

    @property
    def size(self) -> int:
        """Bytes that a token looks at, in whole pages."""
        return sum(map(self.size_of, range(len(self.layers))))

    def size_of(self, number: int) -> int:
        """The same in the layer with KV of this ``number``."""
        layer = self.layers[number]
        return (layer.keys + layer.values) * (-(-self.length // layer.tokens) - layer.first_page(self.length))

    def merged(self, layer: KVLayer, most: int) -> int:
        """How many full pages of ``layer`` are simulated as one; a read has at most ``most`` bytes."""
        pages = 2 * sum(-(-self.length // each.tokens) for each in self.layers if each.window is None)
        if layer.window is not None:
            return 1
        return max(1, min(-(-pages // MOST_PAGES), most // max(layer.keys, layer.values)))
