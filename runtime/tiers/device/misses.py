"""Decides which experts that are not on the device are computed by the CPU, and which are copied up.

An expert that the CPU computes has the CPU's bits, not the device's: this is done only where it is asked for.
"""

import threading
from collections.abc import Sequence

import torch

from ....tiering.policy.miss_costs import MissCosts
from ....tiering.policy.misses import Miss
from ..bridge import Bridge
from ..views import AllViews
from .tier import DeviceTier


class Misses:
    """The measured costs of both ways, for all layers of one model. Thread-safe."""

    def __init__(self, tier: DeviceTier, host: Bridge, views: AllViews) -> None:
        """``host`` is the bridge of the host tier under ``tier``; ``views`` are on host memory."""
        self.host, self.views = host, views
        self._tier = tier
        self._costs, self._lock = MissCosts(), threading.Lock()
        self.count = 0
        """Experts that the CPU has computed."""

    @property
    def device(self) -> torch.device:
        """Where results go."""
        return self._tier.compute

    def choose(self, misses: Sequence[Miss]) -> frozenset[int]:
        """The numbers of those experts among ``misses`` that the CPU should compute."""
        rate, read = self._tier.usage().copied.rate, self.host.speculation.pace
        with self._lock:
            return self._costs.choose_for_cpu(
                misses, copy=1 / rate if rate else 0.0, read=read, queued=self._tier.queued
            )

    def note_computed(self, experts: int, rows: int, seconds: float) -> None:
        """The CPU took ``seconds`` for ``experts``, with ``rows`` in all."""
        with self._lock:
            self._costs.computed(experts, rows, max(seconds, 1e-9))
            self.count += experts
