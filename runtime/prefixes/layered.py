"""Computes the parts of a prompt side by side, layer by layer, so that each weight is read once for all parts.

A part attends to the keys and values of those before it. In lockstep the parts pass every layer in their order: when
one comes there, those before it have put theirs into the cache. Each part sees the cache as if it were the only one
under way, and makes the same calls as alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import greenlet
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ..modules.lockstep import Lockstep, Strand
from ..modules.model_forward import Forwards

Part = Callable[[Cache], Any]
"""Computes a part of a prompt on the cache that it is given."""


def has_layers_in_order(cache: Cache) -> bool:
    """Return whether parts of a prompt may pass the layers of ``cache`` side by side."""
    kinds = {type(layer) for layer in cache.layers}
    return type(cache) is DynamicCache and bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def compute_layered(
    model: Any, forwards: Forwards, cache: Cache, ends: Sequence[int], parts: Sequence[Part]
) -> list[Any]:
    """Compute ``parts`` of a prompt, which end behind ``ends`` tokens, on ``cache``. Returns their results.

    Raises the first error of one.
    """
    begins = [cache.get_seq_length(), *ends[:-1]]
    works = [
        lambda part=part, begin=begin, end=end: part(cast(Cache, _Seen(cache, begin, end)))
        for part, begin, end in zip(parts, begins, ends, strict=True)
    ]
    if isinstance(strand := greenlet.getcurrent(), Strand):
        return strand.lockstep.together(works)
    found: list[Any] = []
    errors: list[BaseException] = []

    def ended(outs: Any, error: BaseException | None) -> None:
        found.extend(outs or ())
        errors.extend([] if error is None else [error])

    with forwards.session() as rounds:
        lockstep = Lockstep(model, forwards.leased, forwards.divided, exact=True)
        try:
            lockstep.start(lambda: lockstep.together(works), ended)
            while lockstep.waits:
                if lockstep.begins:
                    rounds.begin()
                lockstep.advance(1.0)
        finally:
            lockstep.close()
    if errors:
        raise errors[0]
    return found


class _Seen(DynamicCache):  # type: ignore[misc]
    """``whole``, as the part of a prompt sees it that begins behind ``begin`` tokens and ends behind ``end``."""

    def __init__(self, whole: Cache, begin: int, end: int) -> None:
        self.__dict__.update(vars(whole))
        self.whole = whole
        """The cache that the part belongs to."""
        self.layers: list[Any] = [_SeenLayer(layer, begin, end) for layer in whole.layers]


class _SeenLayer:
    """A layer of a cache. Tokens that it still lacks are counted, those that it has too early are not."""

    def __init__(self, layer: Any, begin: int, end: int) -> None:
        self._layer, self._begin, self._end = layer, begin, end

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:  # caches ask which of their layers are attention
        return type(self._layer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def get_seq_length(self) -> int:
        return min(max(int(self._layer.get_seq_length()), self._begin), self._end)

    @property
    def cumulative_length(self) -> int:
        return self.get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        sizes: tuple[int, int] = type(self._layer).get_mask_sizes(self, query_length)
        return sizes
