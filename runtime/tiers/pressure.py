"""Watches the machine's memory, and shrinks and grows the host tier with it."""

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Protocol

from ...tiering.driving.ports import Machine
from ...tiering.planner.regions import EXPERTS, KEPT, RESIDUALS, STREAM
from ...tiering.policy.placement.memory_governor import Governor, low_mark
from ...tiering.policy.placement.memory_split import MemoryShare, split_limit
from ...tiering.policy.placement.shrinking import Division, Divisions
from ...tiering.units import PAGE

PERIOD = 0.2
"""Seconds between two looks at the memory; one takes a tenth of a millisecond, a quarter in a control group."""
CLOSE = 0.04
"""Seconds between two looks when memory is nearly short: other processes may take it quickly."""


class Resizable(Protocol):
    """The bridge of the tier that is resized."""

    def resize(self, limits: Mapping[str, int]) -> None:
        """Regions by name, their limits in bytes."""

    def resident_bytes(self) -> int:
        """Bytes of blocks that are in memory or on their way."""


class ResizablePages(Protocol):
    """Memory for pages of KV, which is resized too."""

    @property
    def part(self) -> MemoryShare:
        """The sizes between which it may be resized."""

    @property
    def limit(self) -> int:
        """Bytes that may be used now."""

    @property
    def held(self) -> int:
        """Bytes in memory."""

    @property
    def wanted(self) -> int:
        """Bytes that pages could use now."""

    def resize(self, limit: int) -> None:
        """Use ``limit`` bytes."""


def limits(division: Division) -> dict[str, int]:
    """The limits of the regions that change, by name, in bytes."""
    return {
        KEPT: division.kept,
        STREAM: division.stream,
        EXPERTS: division.experts,
        RESIDUALS: division.residuals,
    }


class Pressure:
    """The present limits of one model's host tier and of its pages of KV, and the task that moves them."""

    def __init__(self, machine: Machine, divisions: Divisions, kv: ResizablePages | None = None) -> None:
        self._machine, self._divisions, self._kv = machine, divisions, kv
        self._weights = MemoryShare(divisions.floor, divisions.ceiling)
        pages = MemoryShare(0, 0) if kv is None else kv.part
        self.elastic = Governor(divisions.floor + pages.floor, divisions.ceiling + pages.ceiling)
        self._limit = self._advised = self._most = divisions.ceiling
        self.division = divisions.at(divisions.ceiling)
        self._close = False
        self._lock = threading.Lock()

    def leave(self, tier: Resizable, size: int) -> bool:
        """Have ``tier`` leave ``size`` bytes of its budget to others, however much memory is free. Whether it can."""
        most = min(self._divisions.ceiling, self._divisions.budget - size)
        if most < self._divisions.floor:
            return False
        self._most = most
        self._resize(tier)
        return True

    def _resize(self, tier: Resizable) -> None:
        with self._lock:
            limit = min(self._advised, self._most)
            if limit != self._limit:
                self._limit = limit
                self.division = self._divisions.at(limit)
                tier.resize(limits(self.division))

    async def watch(self, tier: Resizable) -> None:
        """Look at the memory every PERIOD seconds until cancelled, every CLOSE seconds while it is nearly short."""
        while True:
            await asyncio.sleep(CLOSE if self._close else PERIOD)
            self.look(tier, time.monotonic())

    def look(self, tier: Resizable, now: float) -> None:
        """Look once, at monotonic time ``now`` in seconds, and resize ``tier`` if need be."""
        try:
            available, total = self._machine.memory()
        except OSError:
            return  # the system does not tell, or not now: leave everything as it is
        self._close = available < 4 * low_mark(total)
        unused = self.division.blocks - tier.resident_bytes()
        if self._kv is None:
            weights = self.elastic.advise(now, available, total, unused)
        else:
            limit = self.elastic.advise(now, available, total, unused + self._kv.limit - self._kv.held)
            weights, pages = split_limit(limit, self._weights, self._kv.part, wanted=self._kv.wanted)
            pages = pages // PAGE * PAGE
            if pages != self._kv.limit:
                self._kv.resize(pages)
        self._advised = weights
        self._resize(tier)
