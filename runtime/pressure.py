"""Watches the machine's memory, beside the reads, and has the host tier shrink and grow with it."""

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

from ..tiering.limits import EXPERTS, KEPT, RESIDUALS, STREAM
from ..tiering.policy.division import Division, Divisions
from ..tiering.policy.elastic import Elastic, low_mark
from ..tiering.ports import Machine

PERIOD = 0.2
"""Seconds between two looks at the memory; one takes a tenth of a millisecond, a quarter in a control group."""
CLOSE = 0.04
"""Seconds between two looks when memory is nearly short: whoever takes it may be quick."""


class Tier(Protocol):
    """What is resized."""

    def resize(self, limits: Mapping[str, int]) -> None:
        """Regions by name, their limits in bytes."""

    def resident_bytes(self) -> int:
        """Bytes of blocks that are in memory or on their way."""


def limits(division: Division) -> dict[str, int]:
    """The limits of the regions that change, in bytes."""
    return {
        KEPT: division.kept,
        STREAM: division.stream,
        EXPERTS: division.experts,
        RESIDUALS: division.residuals,
    }


class Pressure:
    """The present limit of one model's host tier, and the task that moves it."""

    def __init__(self, machine: Machine, divisions: Divisions) -> None:
        self._machine, self._divisions = machine, divisions
        self.elastic = Elastic(divisions.floor, divisions.ceiling)
        self.division = divisions.at(divisions.ceiling)
        self._close = False

    async def watch(self, tier: Tier) -> None:
        """Look at the memory again and again, until cancelled."""
        while True:
            await asyncio.sleep(CLOSE if self._close else PERIOD)
            self.look(tier, time.monotonic())

    def look(self, tier: Tier, now: float) -> None:
        """Look once, at monotonic time ``now`` in seconds, and resize ``tier`` if need be."""
        try:
            available, total = self._machine.memory()
        except OSError:
            return  # a system that does not tell, or not now: leave everything as it is
        self._close = available < 4 * low_mark(total)
        before = self.elastic.limit
        limit = self.elastic.advise(now, available, total, self.division.blocks - tier.resident_bytes())
        if limit != before:
            self.division = self._divisions.at(limit)
            tier.resize(limits(self.division))
