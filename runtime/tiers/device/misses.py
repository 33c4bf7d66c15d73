"""Experts that are not on the device: copied up, or computed by the CPU where they lie, whichever is sooner.

What the CPU computes has the CPU's bits, not the device's: this is done only where it is asked for.
"""

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from ....tiering.policy.miss_costs import MissCosts
from ....tiering.policy.misses import Miss
from ....tiering.units import BlockId
from ...experts.expert_groups import Groups
from ...experts.expert_sum import Output
from ...experts.tier_experts import Lane
from ..bridge import Bridge
from ..views import AllViews
from .tier import DeviceTier

_AT_A_TIME = 4
"""Experts leased in host memory at a time, which copies need too."""


class Misses:
    """What is known of both ways, for all layers of a model whose ``tier`` lies above the ``host``'s. Thread-safe."""

    def __init__(self, tier: DeviceTier, host: Bridge, views: AllViews) -> None:
        """``views`` are on host memory."""
        self.host, self.views = host, views
        self._tier = tier
        self._costs, self._lock = MissCosts(), threading.Lock()
        self.count = 0
        """Experts that the CPU has computed."""

    @property
    def device(self) -> torch.device:
        """Where results go."""
        return self._tier.compute

    def below(self, misses: Sequence[Miss]) -> frozenset[int]:
        """Those of ``misses`` that the CPU had better compute."""
        rate, read = self._tier.usage().copied.rate, self.host.speculation.pace
        with self._lock:
            return self._costs.choose_for_cpu(
                misses, copy=1 / rate if rate else 0.0, read=read, queued=self._tier.queued
            )

    def computed(self, experts: int, rows: int, seconds: float) -> None:
        """The CPU took so long for ``experts`` on so many rows in all."""
        with self._lock:
            self._costs.computed(experts, rows, max(seconds, 1e-9))
            self.count += experts


class HostExperts:
    """The experts of one module, in host memory, below the device that has the others."""

    def __init__(self, lane: Lane, misses: Misses, sizes: Mapping[BlockId, int]) -> None:
        """``lane`` is that of the host tier; ``sizes`` of the module's blocks in bytes."""
        self._lane, self._misses, self._sizes = lane, misses, sizes

    def chosen(self, absent: Sequence[BlockId], groups: Groups) -> list[BlockId]:
        """Those of ``absent``, blocks that are not on the device, that are computed here."""
        misses = [
            Miss(block.part, len(groups[block.part][0]), self._sizes[block], not self._lane.bridge.is_missing(block))
            for block in absent
        ]
        below = self._misses.below(misses)
        return [block for block in absent if block.part in below]

    def outputs(self, blocks: Collection[BlockId], groups: Groups, hidden: torch.Tensor) -> Iterator[list[Output]]:
        """What ``blocks`` give for ``hidden`` [tokens, width], in host memory as ``groups`` are: on the device, each
        time all of some experts. None is leased between."""
        blocks = list(blocks)
        for start in range(0, len(blocks), _AT_A_TIME):
            with self._lane.bridge.acquire(blocks[start : start + _AT_A_TIME]) as leases:
                while leases.left:
                    arrived = self._lane.arrived([next(leases), *leases.here()], leases)
                    rows = sum(len(groups[number][0]) for number, _ in arrived.experts)
                    began = time.monotonic()
                    outputs = list(self._lane.outputs(arrived, groups, hidden))
                    self._misses.computed(len(arrived.experts), rows, time.monotonic() - began)
                    yield [(expert, part, out.to(self._misses.device)) for expert, part, out in outputs]
