"""The caches that transformers keeps for a model, outside of every budget: their size, and a warning about it."""

import threading
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from ....tiering.units import format_size

NEGLIGIBLE = 1 / 64
"""Share of the memory by which keys and values may exceed it without a warning: weights fill it."""


_SMALL = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, DynamicLayer})
"""Kinds of what caches have most of besides tensors. What is in a layer is looked at with its cache."""


class Unbounded:
    """The caches of one model that are alive. Thread-safe."""

    def __init__(self) -> None:
        self._caches: weakref.WeakSet[Cache] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.peak = 0
        """The most bytes that they took after any forward."""
        self.problem = ""
        """The warning, once it was given."""

    def add(self, cache: Any) -> int:
        """Add ``cache``, which a forward has filled, if it is one of transformers' kind; bytes of all caches now."""
        if isinstance(cache, Cache):
            with self._lock:
                self._caches.add(cache)
        size = self.size()
        self.peak = max(self.peak, size)
        return size

    def size(self) -> int:
        """Bytes of all caches now."""
        with self._lock:
            caches = [*self._caches]
        return count_bytes(caches)

    def check(self, size: int, weights: int, budget: int) -> None:
        """Warn, once, if caches of ``size`` bytes and ``weights`` bytes of weights exceed the ``budget`` for both."""
        if self.problem or size + weights <= budget * (1 + NEGLIGIBLE):
            return
        self.problem = (
            f"keys and values take {format_size(size)} beside {format_size(weights)} of weights, more than host_memory "
            f"of {format_size(budget)} in all; [kv] host (kv_host_memory) bounds them within it"
        )
        warnings.warn(self.problem, stacklevel=2)


def count_bytes(caches: Iterable[Cache]) -> int:
    """Bytes of the tensors that ``caches`` hold, without those in pages. A view counts as the whole memory that it
    keeps, and memory that several tensors share counts once."""
    found: dict[int, int] = {}
    left: list[Any] = [*caches]
    while left:
        thing = left.pop()
        kind = type(thing)
        if kind in _SMALL:
            continue
        if kind is torch.Tensor:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, torch.Tensor):  # a subclass, which may have no storage
            found[id(thing)] = thing.nbytes
        elif isinstance(thing, dict):
            left += thing.values()
        elif isinstance(thing, list | tuple):
            left += thing
        elif isinstance(thing, Cache):  # some are made of others
            left += vars(thing).values()
            left += map(vars, getattr(thing, "layers", ()))
    return sum(found.values())
