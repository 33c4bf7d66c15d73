"""The device tier of one model: its arena, the bridge over it, and the copies from the host tier.

Its slots and leases are the books of a planner of its own (tiering/planner/residency.py). tiering/planner/relay.py
knows what is being copied.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ....kernels.devices.base import Device, Mark
from ....kernels.devices.copies import NOTHING, Copied
from ....kernels.devices.fences import Fences
from ....kernels.memory.arena import Arena
from ....tiering.errors import DeviceFull
from ....tiering.planner.arrangement import Arrangement
from ....tiering.planner.relay import Relay, order_of
from ....tiering.store.bundle.reader import Bundle
from ....tiering.units import format_size
from ..bridge import Bridge
from .bridge import DeviceBridge
from .bypass import Bypass
from .uplink import DeviceMemory, Uplink


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """A snapshot of a device tier."""

    bytes: int = 0
    """Bytes of the arena."""
    budget: int = 0
    """Bytes of the device's memory that weights may have."""
    copied: Copied = NOTHING
    """Bytes copied from host memory, and the time."""
    bypass_bytes: tuple[int, ...] = ()
    """Bytes that came from each drive past host memory."""
    bypass_seconds: float = 0.0
    """Time in which these were read."""


class DeviceUse(NamedTuple):
    """How a model uses a device."""

    device: Device
    host_experts: bool = False
    """Whether the CPU may compute experts that are not on the device, with its own bits."""
    grouped: bool = False
    """Whether the device may compute several experts together, in sums of another order."""


class DeviceTier:
    """Weights of one model in a device's memory."""

    def __init__(self, use: DeviceUse, arrangement: Arrangement, bundle: Bundle, host: Bridge, arena: Arena) -> None:
        """Over the host tier's bridge ``host`` and its ``arena``, as ``arrangement`` has both tiers. Raises
        DeviceFull."""
        assert arrangement.device is not None
        assert arrangement.device_setup is not None
        self.device, self.placement = use.device, arrangement.device
        planner, host_setup = arrangement.device_setup.planner(), arrangement.host_setup
        try:
            self.arena = use.device.arena(max(planner.residency.capacity, 1))
        except MemoryError as error:
            free, total = use.device.memory()
            raise DeviceFull(
                f"{use.device.name} has no {format_size(planner.residency.capacity)} in one piece: "
                f"{format_size(free)} of {format_size(total)} are free; lower device_memory, or end what takes the rest"
            ) from error
        use.device.lock_pages(arena)  # copies are right without it, but slower
        fences: Fences[Mark] = Fences()
        self._copies = use.device.copies()
        try:
            self._bypass = Bypass(bundle, use.device, self._copies, fences)
        except BaseException:
            self._copies.close()
            self.arena.close()
            raise
        relay = Relay(order_of(host_setup.homes))
        self.uplink = Uplink(host, arena, host_setup.homes.__contains__, relay, self._copies, fences, self._bypass)
        self.bridge = DeviceBridge(planner, self.uplink, DeviceMemory(self.arena), use.device, fences, host)

    @property
    def compute(self) -> torch.device:
        """Where torch computes."""
        return self.device.compute

    def usage(self) -> DeviceUsage:
        """A snapshot since loading."""
        read = self._bypass.read_bytes
        return DeviceUsage(
            self.arena.length, self.placement.budget, self._copies.copied, tuple(read), self._bypass.read_seconds
        )

    def synchronize(self) -> None:
        """Wait until the device has computed what the calling thread gave it, and for nothing else."""
        if (mark := self.device.mark()) is not None:
            mark.synchronize()

    @property
    def queued(self) -> int:
        """Bytes that wait to be copied, or are being copied."""
        return self._copies.queued

    def full(self, error: torch.OutOfMemoryError) -> DeviceFull:
        """The error to raise where computing took more memory than was left."""
        free, total = self.device.memory()
        return DeviceFull(
            f"computing took more of {self.device.name} than penstock leaves for it: its weights have "
            f"{format_size(self.arena.length)} there, {format_size(free)} of {format_size(total)} are free; lower "
            f"device_memory, or compute on fewer tokens at a time ({str(error).splitlines()[0]})"
        )

    def close(self) -> None:
        """Let copies land, then give the memory back. The host tier must still be open. Idempotent."""
        self.bridge.close()
        self.arena.close()
