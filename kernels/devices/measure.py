"""Measurements of a device and of its bus."""

import queue
import time
from contextlib import closing
from dataclasses import dataclass

import torch

from ..memory.arena import Arena
from .base import Device, NoDevice
from .cuda import Cuda
from .gds import is_direct

_BLOCK, _BLOCKS, _COPIES = 8 << 20, 4, 64


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """A device: ``free`` and ``total`` bytes of memory, and its bus.

    ``bus`` is the rate of copies to the device in bytes per second, from page-locked memory if ``page_locked``.
    ``direct`` says whether drives can read into its memory.
    """

    name: str
    model: str
    free: int
    total: int
    bus: float
    page_locked: bool
    direct: bool


def measure_bus(device: Device) -> tuple[float, bool]:
    """Measure copies of 8 MiB to ``device``, back to back.

    Returns bytes per second, and whether the source could be page-locked. Raises MemoryError, and the error of a copy.
    """
    host, above = Arena(_BLOCKS * _BLOCK), device.arena(_BLOCKS * _BLOCK)
    host.tensor(0, torch.uint8, (host.length,)).fill_(1)
    locked = device.lock_pages(host)
    ends: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    with closing(above), closing(device.copies()) as copies:
        start = time.perf_counter()
        for number in range(_COPIES):
            place = number % _BLOCKS * _BLOCK
            source, target = (arena.tensor(place, torch.uint8, (_BLOCK,)) for arena in (host, above))
            copies.up(source, target, (), ends.put)
        for _ in range(_COPIES):
            if (error := ends.get()) is not None:
                raise error
        seconds = time.perf_counter() - start
    return _COPIES * _BLOCK / seconds, locked


def report_cuda_devices() -> list[DeviceReport]:
    """Report the CUDA devices of this machine that respond."""
    reports = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        try:
            device = Cuda(f"cuda:{number}")
            free, total = device.memory()
            bus, locked = measure_bus(device)
        except (NoDevice, MemoryError, RuntimeError):
            continue
        model = torch.cuda.get_device_name(number)
        reports.append(DeviceReport(device.name, model, free, total, bus, locked, is_direct()))
    return reports
