"""Beginnings of prompts that requests have in common: one computes them, the others go on from a copy."""

import copy
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers.cache_utils import DynamicCache

from ..kv.cache.cache import PagedCache
from ..kv.cache.layer import PagedLayer


class Made(NamedTuple):
    """A cache of the first tokens of prompts, and the hash before the chains of the model that has computed it."""

    cache: DynamicCache
    root: str


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the prompt of a strand has in common with others. ``has`` is what there is of it. After each of the numbers
    of tokens in ``stops``, ``give`` is called with that number, a cache of these tokens, and the model's hash. Once no
    more come, ``done`` is called."""

    has: Made | None
    stops: tuple[int, ...]
    give: Callable[[int, DynamicCache, str], None]
    done: Callable[[], None]


beginning: ContextVar[Beginning | None] = ContextVar("penstock_beginning", default=None)
"""That of the strand that computes."""


def can_copy(cache: DynamicCache) -> bool:
    """Return whether caches like ``cache`` can be copied: approximate attention keeps more than pages."""
    return all(layer.selector is None for layer in cache.layers if isinstance(layer, PagedLayer))


def copy_of(cache: DynamicCache) -> DynamicCache:
    """Return a copy of ``cache``, which has the first tokens of a prompt. Pages are shared, and may leave memory."""
    made: DynamicCache = copy.deepcopy(cache)
    if isinstance(made, PagedCache):
        made.park()
    return made


def begin_with(cache: DynamicCache, other: DynamicCache) -> None:
    """Fill the fresh ``cache`` with what ``other`` has."""
    if isinstance(cache, PagedCache) and isinstance(other, PagedCache):
        cache.begin_as(other)
    else:
        cache.layers[:] = copy.deepcopy(other).layers


def let_go(cache: Any) -> None:
    """Give back the memory of ``cache``, which nobody uses any more."""
    if isinstance(cache, PagedCache):
        cache.reset()
