"""Experts that are not on the device, computed by the CPU in host memory where they lie."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from ...tiering.policy.misses import Miss
from ...tiering.units import BlockId
from ..tiers.device.misses import Misses
from .expert_groups import Groups
from .expert_sum import Output
from .tier_experts import TierExperts

_AT_A_TIME = 4
"""Experts leased in host memory at a time, which copies need too."""


class HostExperts:
    """The experts of one module in host memory. The results have the bits of the CPU, not those of the device."""

    def __init__(self, experts: TierExperts, misses: Misses, sizes: Mapping[BlockId, int]) -> None:
        """``experts`` are those of the host tier; ``sizes`` of the module's blocks in bytes."""
        self._experts, self._misses, self._sizes = experts, misses, sizes

    def choose(self, missing: Sequence[BlockId], groups: Groups) -> list[BlockId]:
        """Those of ``missing``, blocks that are not on the device, that the CPU should compute."""
        is_missing = self._experts.bridge.is_missing
        misses = [
            Miss(block.part, len(groups[block.part][0]), self._sizes[block], not is_missing(block)) for block in missing
        ]
        chosen = self._misses.choose(misses)
        return [block for block in missing if block.part in chosen]

    def outputs(self, blocks: Collection[BlockId], groups: Groups, hidden: torch.Tensor) -> Iterator[list[Output]]:
        """What ``blocks`` give for ``hidden`` [tokens, width], which is in host memory as ``groups`` are. The outputs
        are on the device; each list has all of some experts. None is leased between two lists."""
        blocks = list(blocks)
        for start in range(0, len(blocks), _AT_A_TIME):
            with self._experts.bridge.acquire(blocks[start : start + _AT_A_TIME]) as leases:
                while leases.left:
                    arrived = self._experts.view([next(leases), *leases.here()], leases)
                    rows = sum(len(groups[number][0]) for number, _ in arrived.experts)
                    began = time.monotonic()
                    outputs = list(self._experts.outputs(arrived.experts, groups, hidden))
                    self._experts.bridge.release(*arrived.leased)
                    self._misses.note_computed(len(arrived.experts), rows, time.monotonic() - began)
                    yield [(expert, part, out.to(self._misses.device)) for expert, part, out in outputs]
