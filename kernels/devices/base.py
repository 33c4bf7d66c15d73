"""What a device tier needs of a device: memory, copies up beside everything else, and marks in what is computed."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from ..memory.arena import Arena
from .copies import Copies


class NoDevice(Exception):
    """This machine has no such device, or it lacks what is needed."""


class Mark(Protocol):
    """A place in what a device has been given to compute; a copy can be told to wait until it is reached."""

    def synchronize(self) -> None:
        """Wait until it is."""


class DirectFile(Protocol):
    """A file that is read into a device's memory by the drive itself."""

    def read(self, into: torch.Tensor, offset: int) -> None:
        """Fill ``into``, bytes on the device, from ``offset`` on. Raises OSError."""

    def close(self) -> None: ...


class DeviceArena(Protocol):
    """``length`` bytes of a device's memory."""

    length: int
    address: int

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A contiguous tensor on the bytes at ``offset``, a multiple of the item's size; no copy. It keeps the memory
        alive, also past ``close``. Raises ValueError outside the arena, ArenaClosed after ``close``."""

    def discard(self, offset: int, length: int) -> None:
        """Nothing in this range is needed any more."""

    def close(self) -> None:
        """Hand out no more tensors. Idempotent."""


class Device(Protocol):
    """A device that models can be computed on."""

    name: str
    """As it is written in the configuration."""
    compute: torch.device
    """Where torch computes on what lies in its memory."""

    def current(self) -> AbstractContextManager[None]:
        """In here, what the calling thread launches goes to it: Triton asks for a thread's device, not a tensor's."""

    def memory(self) -> tuple[int, int]:
        """Bytes of its memory that are free now, and in all."""

    def arena(self, length: int) -> DeviceArena:
        """That much of its memory, in one piece. Raises MemoryError."""

    def lock_pages(self, arena: Arena) -> bool:
        """Keep the pages of ``arena`` in place until it goes, so that the device can fetch from them by itself;
        whether the system lets it."""

    def copies(self) -> Copies:
        """A way up: copies on it are made in order, and beside all others."""

    def down(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """Copy ``source``, bytes on the device, to ``into``, as many in host memory, and wait for that."""

    def direct_file(self, path: Path) -> DirectFile | None:
        """The file ``path``, where this system has a way from drives to the device past host memory."""

    def mark(self) -> Mark | None:
        """The end of what the calling thread has had computed until now; None if all of that is done."""
