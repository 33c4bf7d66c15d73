"""An emulated device in host memory: the logic of three tiers runs, and is tested, on any machine.

The CPU computes in its place, with the same bits as without it. Copies are real, and limited to the requested rate.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from ..machine.machine import MemoryMeter
from ..memory.arena import Arena
from .copies import Copies, WaitForCopy


class Emulated:
    """A device in host memory.

    ``rate`` is the speed of the modelled bus in bytes per second, None for the speed of memory. ``size`` is the memory
    of the modelled device in bytes, None for the free memory of this machine.
    """

    def __init__(self, *, rate: float | None = None, size: int | None = None, name: str = "emulated") -> None:
        self.name, self.compute = name, torch.device("cpu")
        self._rate, self._size = rate, size

    def current(self) -> AbstractContextManager[None]:
        """Do nothing: the CPU needs no selection."""
        return nullcontext()

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of the modelled device."""
        return MemoryMeter().memory() if self._size is None else (self._size, self._size)

    def arena(self, length: int) -> Arena:
        """Allocate ``length`` bytes of host memory."""
        if self._size is not None and length > self._size:
            raise MemoryError(f"{length} bytes of {self._size}")
        try:
            return Arena(length)
        except OSError as error:
            raise MemoryError(str(error)) from error

    def lock_pages(self, arena: Arena) -> bool:
        """Return False: no device fetches from the pages."""
        return True

    def copies(self) -> Copies:
        """Open a queue of copies with a modelled bus of its own."""
        free_at = 0.0

        def begin(source: torch.Tensor, target: torch.Tensor, after: Sequence[None]) -> WaitForCopy:
            asked = time.monotonic()

            def wait() -> None:
                nonlocal free_at
                with torch.inference_mode():  # whoever asked may have made ``target`` in that mode
                    target.copy_(source)
                if self._rate is not None:
                    free_at = max(free_at, asked) + source.nbytes / self._rate
                    time.sleep(max(0.0, free_at - time.monotonic()))

            return wait

        return Copies(begin)

    def down(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """Copy to host memory, as Device.down."""
        into.copy_(source)

    def direct_file(self, path: Path) -> None:
        """Return None: no drive reaches this device."""

    def mark(self) -> None:
        """Return None: the CPU has always finished."""
