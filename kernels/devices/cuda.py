"""A CUDA device: a plain allocation as the arena, page-locked host memory, copies on a stream of their own.

A copy waits only for marks, which are events behind the work on the memory that it overwrites. The copies' thread waits
for the copy's own event. The device is never synchronised as a whole.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ..memory.arena import Arena, ArenaClosed
from .base import NoDevice
from .copies import Copies, WaitForCopy
from .gds import GdsFile, is_direct


class CudaArena:
    """``length`` bytes on ``device``. Raises MemoryError."""

    def __init__(self, device: torch.device, length: int) -> None:
        try:
            self._memory: torch.Tensor | None = torch.empty(length, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error
        self.length, self.address = length, self._memory.data_ptr()

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor on the bytes at ``offset``, as DeviceArena.tensor."""
        if self._memory is None:
            raise ArenaClosed("the arena is closed")
        size = dtype.itemsize * math.prod(shape)
        if offset < 0 or offset + size > self.length:
            raise ValueError(f"{size} bytes at {offset} are outside an arena of {self.length} bytes")
        if offset % dtype.itemsize:
            raise ValueError(f"offset {offset} is not a multiple of {dtype}'s {dtype.itemsize} bytes")
        return self._memory[offset : offset + size].view(dtype).view(shape)

    def discard(self, offset: int, length: int) -> None:
        """Do nothing: the allocation stays."""

    def close(self) -> None:
        """Hand out no more tensors, as DeviceArena.close."""
        self._memory = None


class Cuda:
    """The device ``name``, "cuda" or "cuda:N". Raises NoDevice."""

    def __init__(self, name: str) -> None:
        if not torch.cuda.is_available():
            why = "this torch is built without CUDA" if torch.version.cuda is None else "no CUDA device or driver"
            raise NoDevice(f"torch finds no CUDA device on this machine ({why})")
        index = torch.device(name).index or 0
        if index >= torch.cuda.device_count():
            raise NoDevice(f"there is no {name}: this machine has {torch.cuda.device_count()} CUDA devices")
        self.name, self.compute = name, torch.device("cuda", index)
        try:
            torch.cuda.mem_get_info(self.compute)
        except RuntimeError as error:
            raise NoDevice(f"{name} does not answer: {error}") from error

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Make this the calling thread's device, as Device.current."""
        return torch.cuda.device(self.compute)

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device, as Device.memory."""
        free, total = torch.cuda.mem_get_info(self.compute)
        return free, total

    def arena(self, length: int) -> CudaArena:
        """Allocate ``length`` bytes of the device. Raises MemoryError."""
        return CudaArena(self.compute, length)

    def lock_pages(self, arena: Arena) -> bool:
        """Register the arena's memory in place, until it is freed.

        Allocators of page-locked memory would round up to powers of two. The registration must end with the memory.
        Otherwise copies from a later mapping at the same address would read the old pages.
        """
        runtime = cast(Any, torch.cuda.cudart())  # type: ignore[no-untyped-call]
        address = arena.address
        with self.current():  # the registration belongs to that device's context
            if int(runtime.cudaHostRegister(address, arena.length, 0)):
                with contextlib.suppress(RuntimeError):  # the next kernel would report this error as its own
                    torch.zeros(1, device=self.compute)
                return False
        arena.call_before_release(lambda: runtime.cudaHostUnregister(address))
        return True

    def copies(self) -> Copies:
        """Open a queue of copies on a stream of its own, as Device.copies."""
        stream = torch.cuda.Stream(self.compute)  # type: ignore[no-untyped-call]

        def start(source: torch.Tensor, target: torch.Tensor, after: Sequence[torch.cuda.Event]) -> WaitForCopy:
            with torch.cuda.stream(stream):
                for mark in after:
                    stream.wait_event(mark)
                target.copy_(source, non_blocking=True)
                end = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                end.record(stream)

            def wait(held: object = (source, target)) -> None:  # keeps both tensors until then
                end.synchronize()

            return wait

        def begin(source: torch.Tensor, target: torch.Tensor, after: Sequence[torch.cuda.Event]) -> WaitForCopy:
            if source.is_pinned():
                return start(source, target, after)
            # A copy from pageable memory blocks the thread that begins it. The caller may hold locks: use our thread.
            return lambda: start(source, target, after)()

        return Copies(begin)

    def down(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """Copy to host memory and wait, as Device.down."""
        with torch.cuda.stream(torch.cuda.Stream(self.compute)):  # type: ignore[no-untyped-call]
            into.copy_(source, non_blocking=True)
            end = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            end.record()
        end.synchronize()

    def direct_file(self, path: Path) -> GdsFile | None:
        """Open a file through GPUDirect Storage, as Device.direct_file."""
        return GdsFile(path) if is_direct() else None

    def mark(self) -> torch.cuda.Event:
        """Record an event on the calling thread's stream, as Device.mark."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.compute))
        return event
