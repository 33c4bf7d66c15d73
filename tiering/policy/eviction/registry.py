"""Eviction policies by the name they have in the configuration."""

from collections.abc import Mapping

from .lfu import LFU
from .lru import LRU
from .next_use import NextUse
from .policy import Policy

EVICTION: Mapping[str, Policy] = {
    "auto": NextUse,
    "lru": lambda route: LRU(),
    "lfu": lambda route: LFU(),
    "next-use": NextUse,
}
