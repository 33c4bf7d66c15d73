"""Eviction policies by the name they have in the configuration."""

from collections.abc import Callable

from .lfu import LFU
from .lru import LRU
from .next_use import NextUse
from .policy import Eviction

EVICTION: dict[str, Callable[[], Eviction]] = {"auto": NextUse, "lru": LRU, "lfu": LFU, "next-use": NextUse}
