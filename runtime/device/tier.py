"""The device tier of one model: its arena, the planner's bridge over it, and its way down to the host tier."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ...kernels.arena import Arena
from ...kernels.devices.base import Device, Mark
from ...kernels.devices.copies import Copied
from ...kernels.devices.fences import Fences
from ...tiering.errors import DeviceFull
from ...tiering.policy.division import Divisions
from ...tiering.policy.placement import Placement, SizedBlock
from ...tiering.policy.reads import Reading
from ...tiering.relay import Relay, order_of
from ...tiering.setup import Setup, setup_of
from ...tiering.store.manifest import Block
from ...tiering.store.reader import Bundle
from ...tiering.units import BlockId, format_size
from ..bridge import Bridge
from .bridge import DeviceBridge
from .straight import StraightUp
from .uplink import DeviceMemory, Uplink

COPIES_AHEAD = 2
"""Blocks that may wait for their copy, beside those that wait for flash."""


class Above(NamedTuple):
    """A device, what of a model lies where in its budget, and which blocks pass through host memory; whether the CPU
    may compute experts ``aside``, with its own bits."""

    device: Device
    placement: Placement
    below: frozenset[BlockId]
    aside: bool = False


class DeviceTier:
    """Made over the host tier's ``host`` bridge and ``arena``, for a planner as ``setup`` has it. Raises DeviceFull."""

    def __init__(self, above: Above, setup: Setup, below: Setup, bundle: Bundle, host: Bridge, arena: Arena) -> None:
        self.device, self.placement = above.device, above.placement
        planner = setup.planner()
        self._copies = above.device.copies()
        try:
            self.arena = above.device.arena(max(planner.residency.capacity, 1))
        except MemoryError as error:
            self._copies.close()
            free, total = above.device.memory()
            raise DeviceFull(
                f"{above.device.name} has no {format_size(planner.residency.capacity)} in one piece: "
                f"{format_size(free)} of {format_size(total)} are free; lower device_memory, or end what takes the rest"
            ) from error
        self.page_locked = above.device.lock_pages(arena)
        fences: Fences[Mark] = Fences()
        uplink = Uplink(
            host,
            arena,
            below.homes.__contains__,
            Relay(order_of(below.homes)),
            self._copies,
            fences,
            StraightUp(bundle, above.device, self._copies, fences),
        )
        self.bridge = DeviceBridge(planner, uplink, DeviceMemory(self.arena), above.device, fences, host)

    @property
    def compute(self) -> torch.device:
        """Where torch computes."""
        return self.device.compute

    @property
    def copied(self) -> Copied:
        """What was copied up."""
        return self._copies.copied

    @property
    def queued(self) -> int:
        """Bytes that wait for their copy, or are being copied."""
        return self._copies.queued

    def full(self, error: torch.OutOfMemoryError) -> DeviceFull:
        """What to raise where computing took more memory than was left."""
        free, total = self.device.memory()
        return DeviceFull(
            f"computing took more of {self.device.name} than penstock leaves for it: its weights have "
            f"{format_size(self.arena.length)} there, {format_size(free)} of {format_size(total)} are free; lower "
            f"device_memory, or compute on fewer tokens at a time ({str(error).splitlines()[0]})"
        )

    def close(self) -> None:
        """Let copies land, give the memory back. The host tier must still be there. Idempotent."""
        self.bridge.close()
        self.arena.close()


def device_setup(
    blocks: Sequence[Block],
    placement: Placement,
    reading: Reading,
    *,
    drives: int,
    eviction: str,
    guess: bool,
) -> Setup:
    """The setup of the device's planner: the host tier is its one drive, which takes as many reads as all drives of the
    host do and some more that are only to be copied; every block is copied by itself."""
    sizes = [SizedBlock(block.id, block.extent.length, block.resident) for block in blocks]
    divisions = Divisions(sizes, placement, floor=placement.budget)
    return setup_of(
        ((block.id, block.extent, 0) for block in blocks),
        placement,
        divisions,
        replace(reading, depth=reading.depth * drives + COPIES_AHEAD, size=0),
        drives=1,
        eviction=eviction,
        guess=guess,
    )
