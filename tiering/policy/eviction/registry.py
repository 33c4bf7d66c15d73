"""Eviction policies by their names in the configuration."""

from collections.abc import Mapping

from .arc import ARC
from .auto import Auto
from .interface import Policy
from .lfu import LFU
from .lru import LRU
from .next_use import NextUse
from .succinct import Rare, Succinct
from .windowed import WindowedLFU

EVICTION: Mapping[str, Policy] = {
    "auto": lambda route: Auto([lambda: NextUse(route), LRU]),
    "next-use": NextUse,
    "lfu": lambda route: LFU(),
    "windowed-lfu": lambda route: WindowedLFU(),
    "succinct": lambda route: Succinct(Rare()),
    "arc": lambda route: ARC(),
    "lru": lambda route: LRU(),
}
