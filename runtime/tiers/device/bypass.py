"""Reads blocks from flash to the device past host memory: those that stay on the device, each once.

They pass piece by piece through a little staging memory, so that the host's budget need not hold them; or the drive
itself writes to the device, where the system can do that.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import xxhash

from ....kernels.devices.base import Device, DeviceFile, Mark
from ....kernels.devices.copies import Copies
from ....kernels.devices.fences import Fences
from ....kernels.memory.arena import Arena
from ....kernels.waiting import deliver, mark_thread
from ....tiering.events import Part
from ....tiering.store.bundle.manifest import Block
from ....tiering.store.bundle.reader import Bundle
from ....tiering.units import PAGE, MiB
from .uplink import Done

STAGING = 8 * MiB
"""Bytes of staging memory, in two halves: one is read into while the other is copied."""


class _Wanted(NamedTuple):
    part: Part
    into: torch.Tensor
    landed: Done


class Bypass:
    """One thread, and staging memory while it has something to read."""

    def __init__(self, bundle: Bundle, device: Device, copies: Copies, fences: Fences[Mark]) -> None:
        self._bundle, self._device, self._copies, self._fences = bundle, device, copies, fences
        self._blocks = {block.id: block for block in bundle.manifest.blocks}
        self._files = [device.direct_file(path) for path in bundle.paths]
        self.read_bytes, self.read_seconds = [0] * len(bundle.manifest.drive_bytes), 0.0
        """Bytes read from each drive, and seconds that took."""
        self._wanted: queue.SimpleQueue[_Wanted | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="penstock-bypass", daemon=True)
        self._thread.start()

    def read(self, part: Part, into: torch.Tensor, landed: Done) -> None:
        """As PastHost.read."""
        self._wanted.put(_Wanted(part, into, landed))

    def close(self) -> None:
        """End the thread, when nothing is read any more. Idempotent."""
        if not self._closed:
            self._closed = True
            self._wanted.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        for file in filter(None, self._files):
            file.close()

    def _run(self) -> None:
        mark_thread()
        while (wanted := self._wanted.get()) is not None:
            with contextlib.closing(Arena(STAGING)) as staging:
                self._device.lock_pages(staging)
                while wanted is not None:
                    deliver(wanted.landed, self._read(wanted, staging))
                    with contextlib.suppress(queue.Empty):
                        wanted = self._wanted.get_nowait()
                        continue
                    break
            if wanted is None:
                return

    def _read(self, wanted: _Wanted, staging: Arena) -> Exception | None:
        """Read one block; the error, or None, when nothing writes to the block's slot any more."""
        block = self._blocks[wanted.part.block]
        after = self._fences.before(wanted.part.slot.offset, wanted.part.slot.length)
        try:
            file = self._files[block.extent.file]
            whole = self._past(block, file, wanted.into, after, staging) if file else None
            if whole is None:
                whole = self._staged(block, wanted.into, after, staging)
            if whole != block.checksum:
                return self._bundle.corrupt(block, "is altered: its checksum does not match")
            return self._find_fault(block, wanted.into, staging)
        except Exception as error:
            return error

    def _find_fault(self, block: Block, arrived: torch.Tensor, staging: Arena) -> Exception | None:
        """What is wrong with the matrices of ``block``, which has ``arrived`` on the device: what must be looked at is
        copied down piece by piece."""

        def read(start: int, length: int) -> torch.Tensor:
            # Only a tile of very long rows has more bytes.
            small = length <= staging.length
            into = staging.tensor(0, torch.uint8, (length,)) if small else torch.empty(length, dtype=torch.uint8)
            self._device.down(arrived[start : start + length], into)
            return into

        return self._bundle.find_fault(block, read, STAGING)

    def _staged(self, block: Block, into: torch.Tensor, after: Sequence[Mark], staging: Arena) -> str:
        """Read ``block`` through staging memory; its checksum."""
        half, length = STAGING // 2, block.extent.length
        whole = xxhash.xxh3_64()
        failed: list[Exception] = []
        free = threading.Semaphore(2)  # halves that nothing is copied from

        def copied(error: Exception | None) -> None:
            if error is not None:
                failed.append(error)
            free.release()

        try:
            for number, start in enumerate(range(0, length, half)):
                free.acquire()
                size = min(half, length - start)
                place = number % 2 * half
                view = staging.view(place, size)
                try:
                    self._read_piece(block, start, view)
                except BaseException:
                    free.release()
                    raise
                whole.update(view)
                source = staging.tensor(place, torch.uint8, (size,))
                self._copies.up(source, into[start : start + size], after, copied)
                after = ()
        finally:
            for _ in range(2):  # nothing writes there any more
                free.acquire()
        if failed:
            raise failed[0]
        return whole.hexdigest()

    def _past(
        self, block: Block, file: DeviceFile, into: torch.Tensor, after: Sequence[Mark], staging: Arena
    ) -> str | None:
        """Have the drive fill ``into``. Returns the checksum of the bytes there, which are copied down for that: the
        bus carries both directions at once. None where it fails; the staged way may still work."""
        began = time.monotonic()
        for mark in after:
            mark.synchronize()
        try:
            file.read(into, block.extent.offset)
        except OSError:
            return None
        self._count(block, block.extent.length, time.monotonic() - began)
        whole = xxhash.xxh3_64()
        for start in range(0, block.extent.length, STAGING):
            size = min(STAGING, block.extent.length - start)
            self._device.down(into[start : start + size], staging.tensor(0, torch.uint8, (size,)))
            whole.update(staging.view(0, size))
        return whole.hexdigest()

    def _read_piece(self, block: Block, start: int, view: memoryview) -> None:
        began = time.monotonic()
        self._bundle.read_rows(block, start // PAGE, view)
        self._count(block, len(view), time.monotonic() - began)

    def _count(self, block: Block, size: int, seconds: float) -> None:
        self.read_bytes[self._bundle.manifest.drive_of(block)] += size
        self.read_seconds += seconds
