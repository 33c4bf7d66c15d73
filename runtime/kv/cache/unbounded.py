"""The caches that transformers keeps for a model, outside of every budget: their size, and a warning about it."""

import threading
import warnings
import weakref
from collections import deque
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from ....tiering.units import format_size

NEGLIGIBLE = 1 / 64
"""Share of the memory by which keys and values may exceed it without a warning: weights fill it."""


_SMALL = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, DynamicLayer})
"""Kinds of what caches have most of besides tensors. What is in a layer is looked at with its cache."""


class Unbounded:
    """The caches of one model that are alive. Memory that several of them share counts once. Thread-safe.

    A forward counts anew what the cache holds that it has filled. What becomes of the others between forwards shows
    when they are next filled, or somebody asks for ``size``.
    """

    def __init__(self) -> None:
        self._caches: dict[weakref.ref[Cache], dict[int, int]] = {}  # with the bytes of the memory of each, by address
        self._gone: deque[weakref.ref[Cache]] = deque()  # the garbage collector comes in the middle of anything
        self._uses: dict[int, tuple[int, int]] = {}  # of each address: bytes, and in how many caches
        self._size = 0
        self._lock = threading.Lock()
        self.peak = 0
        """The most bytes that they took after any forward."""
        self.problem = ""
        """The warning, once it was given."""

    def add(self, cache: Any) -> int:
        """Add ``cache``, which a forward has filled, if it is one of transformers' kind; bytes of all caches now."""
        with self._lock:
            self._forget_gone()
            if isinstance(cache, Cache):
                self._count(weakref.ref(cache, self._gone.append), cache)
            self.peak = max(self.peak, self._size)
            return self._size

    def size(self) -> int:
        """Bytes of all caches now."""
        with self._lock:
            self._forget_gone()
            for ref in [*self._caches]:
                if (cache := ref()) is not None:
                    self._count(ref, cache)
            self._forget_gone()
            return self._size

    def _count(self, ref: "weakref.ref[Cache]", cache: Cache) -> None:
        """Count what ``cache`` holds now. References to one cache are equal as long as it lives."""
        before, now = self._caches.get(ref, {}), _memory_of(cache)
        self._caches[ref] = now
        for address in before.keys() - now.keys():
            self._note(address, 0, -1)
        for address, size in now.items():
            self._note(address, size, address not in before)

    def _note(self, address: int, size: int, more: int) -> None:
        """``more`` caches than before hold the memory at ``address``: of ``size`` bytes, where they do."""
        known, uses = self._uses.pop(address, (0, 0))
        if more < 0:
            size = known if uses + more else 0
        self._size += size - known
        if uses + more:
            self._uses[address] = size, uses + more

    def _forget_gone(self) -> None:
        while self._gone:
            for address in self._caches.pop(self._gone.popleft(), {}):
                self._note(address, 0, -1)

    def check(self, size: int, weights: int, budget: int) -> None:
        """Warn, once, if caches of ``size`` bytes and ``weights`` bytes of weights exceed the ``budget`` for both."""
        if self.problem or size + weights <= budget * (1 + NEGLIGIBLE):
            return
        self.problem = (
            f"keys and values take {format_size(size)} beside {format_size(weights)} of weights, more than host_memory "
            f"of {format_size(budget)} in all; [kv] host (kv_host_memory) bounds them within it"
        )
        warnings.warn(self.problem, stacklevel=2)


def _memory_of(cache: Cache) -> dict[int, int]:
    """Bytes of the memory of the tensors that ``cache`` holds, without those in pages, by address. A view counts as the
    whole memory that it keeps."""
    found: dict[int, int] = {}
    left: list[Any] = [cache]
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
    return found
