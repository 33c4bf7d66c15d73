"""The tier that is computed on: its bridge, the tensors on its slots, the device that torch computes on."""

from dataclasses import dataclass

import torch

from ...kernels.devices.base import DeviceArena
from ...tiering.policy.placement.placement import Placement
from .bridge import Bridge
from .views import AllViews


@dataclass(frozen=True, slots=True)
class ComputeTier:
    """The device tier where there is one, the host tier otherwise."""

    bridge: Bridge
    arena: DeviceArena
    views: AllViews
    """Views on the slots of ``arena``."""
    placement: Placement
    compute: torch.device
    """The device that torch computes on."""
    budget: str
    """The name of the setting that bounds this tier, for errors."""

    @property
    def native(self) -> bool:
        """Whether the CPU computes. Only then may our own products run: they never see an address of a device."""
        return self.compute.type == "cpu"

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies in the arena, so that its bytes may change once its lease is given back."""
        return self.arena.address <= tensor.data_ptr() < self.arena.address + self.arena.length
