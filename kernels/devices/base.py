"""Interface of a device for the device tier: memory, copies from the host, and marks in the device's work."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from ..memory.arena import Arena
from .copies import Copies


class NoDevice(Exception):
    """This machine has no such device, or the device lacks a requirement. The message says which."""


class Mark(Protocol):
    """A point in the work of a device. A copy can wait until the device reaches it."""

    def synchronize(self) -> None:
        """Wait until the device reaches the mark."""


class DeviceFile(Protocol):
    """A file that the drive itself reads into a device's memory."""

    def read(self, into: torch.Tensor, offset: int) -> None:
        """Fill ``into``, bytes on the device, from ``offset`` on. Raises OSError."""

    def close(self) -> None:
        """Close the file."""


class DeviceArena(Protocol):
    """``length`` bytes of a device's memory."""

    length: int
    address: int

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a contiguous tensor on the bytes at ``offset``, a multiple of the item's size, without a copy.

        The tensor keeps the memory alive, also past ``close``. Raises ValueError outside the arena, ArenaClosed after
        ``close``.
        """

    def discard(self, offset: int, length: int) -> None:
        """Note that the contents of this range are no longer needed."""

    def close(self) -> None:
        """Hand out no more tensors. Idempotent."""


class Device(Protocol):
    """A device that computes models."""

    name: str
    """The name in the configuration."""
    compute: torch.device
    """The torch device that computes on tensors in its memory."""

    def current(self) -> AbstractContextManager[None]:
        """Make this the calling thread's device for launches.

        Triton uses the device of a thread, not that of a tensor.
        """

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of its memory."""

    def arena(self, length: int) -> DeviceArena:
        """Allocate ``length`` bytes of its memory in one piece. Raises MemoryError."""

    def lock_pages(self, arena: Arena) -> bool:
        """Lock the pages of ``arena`` in memory until it is freed, so that the device can fetch from them by itself.

        Returns False if the system refuses.
        """

    def copies(self) -> Copies:
        """Open a queue of copies to the device. Its copies are made in order, independently of other queues."""

    def down(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """Copy ``source``, bytes on the device, to ``into``, the same length in host memory, and wait for the copy."""

    def direct_file(self, path: Path) -> DeviceFile | None:
        """Open ``path`` for reads from the drive to the device past host memory.

        None where the system has no such path.
        """

    def mark(self) -> Mark | None:
        """Return a mark at the end of the work that the calling thread has launched. None if all of it is done."""
