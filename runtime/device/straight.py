"""Blocks from flash to the device past the host tier: those that stay on the device, read once.

Piece by piece through a little staging memory, so that the host's budget need not hold a block that only passes.
"""

import contextlib
import queue
import threading
from typing import NamedTuple

import torch
import xxhash

from ...kernels.arena import Arena
from ...kernels.devices.base import Device, Mark
from ...kernels.devices.copies import Copies
from ...kernels.devices.fences import Fences
from ...kernels.reading import deliver, mark_thread
from ...tiering.events import Part
from ...tiering.store.reader import Bundle
from ...tiering.units import PAGE, MiB
from .uplink import Done

STAGING = 8 * MiB
"""Bytes in two halves: one is read into while the other is copied."""


class _Wanted(NamedTuple):
    part: Part
    into: torch.Tensor
    landed: Done


class StraightUp:
    """One thread, and staging memory while there is something to do."""

    def __init__(self, bundle: Bundle, device: Device, copies: Copies, fences: Fences[Mark]) -> None:
        self._bundle, self._device, self._copies, self._fences = bundle, device, copies, fences
        self._blocks = {block.id: block for block in bundle.manifest.blocks}
        self._wanted: queue.SimpleQueue[_Wanted | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="penstock-straight", daemon=True)
        self._thread.start()

    def read(self, part: Part, into: torch.Tensor, landed: Done) -> None:
        """As Straight.read."""
        self._wanted.put(_Wanted(part, into, landed))

    def close(self) -> None:
        """Once nothing is read any more. Idempotent."""
        if not self._closed:
            self._closed = True
            self._wanted.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

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
        """What went wrong, when nothing writes to the block's place any more."""
        block = self._blocks[wanted.part.block]
        half, length = STAGING // 2, block.extent.length
        after = self._fences.before(wanted.part.slot.offset, wanted.part.slot.length)
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
                    self._bundle.read_rows(block, start // PAGE, view)
                except BaseException:
                    free.release()
                    raise
                whole.update(view)
                source = staging.tensor(place, torch.uint8, (size,))
                self._copies.up(source, wanted.into[start : start + size], after, copied)
                after = []
        except Exception as error:
            failed.append(error)
        for _ in range(2):
            free.acquire()
        if not failed and whole.hexdigest() != block.checksum:
            failed.append(self._bundle.corrupt(block, "is altered: its checksum does not match"))
        return failed[0] if failed else None
