"""A device that is a part of host memory: the logic of three tiers runs, and is tested, on any machine.

What is computed "on" it is computed by the CPU, with the same bits as without it. Copies are real ones, not faster than
the rate that is asked for.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from ..machine.machine import MemoryMeter
from ..memory.arena import Arena
from .copies import Copies, Wait


class Emulated:
    """``rate``: bytes per second of the modelled bus; None for what memory gives. ``size``: bytes of the modelled
    device's memory; None for what is free here."""

    def __init__(self, *, rate: float | None = None, size: int | None = None, name: str = "emulated") -> None:
        self.name, self.compute = name, torch.device("cpu")
        self._rate, self._size = rate, size

    def current(self) -> AbstractContextManager[None]:
        """The CPU needs no saying."""
        return nullcontext()

    def memory(self) -> tuple[int, int]:
        return MemoryMeter().memory() if self._size is None else (self._size, self._size)

    def arena(self, length: int) -> Arena:
        if self._size is not None and length > self._size:
            raise MemoryError(f"{length} bytes of {self._size}")
        try:
            return Arena(length)
        except OSError as error:
            raise MemoryError(str(error)) from error

    def lock_pages(self, arena: Arena) -> bool:
        """Nothing fetches from them by itself."""
        return True

    def copies(self) -> Copies:
        """A bus of its own."""
        free_at = 0.0

        def begin(source: torch.Tensor, target: torch.Tensor, after: Sequence[None]) -> Wait:
            asked = time.monotonic()

            def wait() -> None:
                nonlocal free_at
                target.copy_(source)
                if self._rate is not None:
                    free_at = max(free_at, asked) + source.nbytes / self._rate
                    time.sleep(max(0.0, free_at - time.monotonic()))

            return wait

        return Copies(begin)

    def down(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """As Device.down."""
        into.copy_(source)

    def direct_file(self, path: Path) -> None:
        """No drive knows of this device."""

    def mark(self) -> None:
        """The CPU computes at once."""
