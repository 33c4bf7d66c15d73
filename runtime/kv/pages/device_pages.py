"""KV on the device: the copies of pages that lie there, and the way up for what is only looked at in passing."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ....kernels.devices.base import Device, Mark
from ....kernels.devices.fences import Fences
from ....kernels.kv.base import PageShape
from ....kernels.process.interrupts import may_be_interrupted
from ....kernels.waiting import no_waiting
from ....tiering.errors import Closed, DeviceFull, ReadError
from ....tiering.kv.device_pages import Pair
from ....tiering.kv.events import Lifted, Looked, Offer
from ....tiering.kv.pages import Page
from ....tiering.kv.planner import CLOSED
from ....tiering.units import PAGE, format_size
from .pool import PagePool


@dataclass(frozen=True, slots=True)
class UpperUsage:
    """A snapshot. ``device_bytes`` of ``device_budget`` have pages in them; ``pages_up`` were copied there to stay;
    ``bytes_up`` are those of all copies to the device, also of what only passed."""

    device_bytes: int = 0
    device_budget: int = 0
    pages_up: int = 0
    bytes_up: int = 0


class UpperTier:
    """Above ``pool``: ``capacity`` bytes of ``device``, on which attention is asked for. Thread-safe.

    Its lock may be taken while the pool's is held, never the other way round. Raises DeviceFull.
    """

    def __init__(self, capacity: int, device: Device, pool: PagePool) -> None:
        self.compute = device.compute
        """Where torch computes on copies."""
        self._device, self._pool = device, pool
        self._lock = threading.Lock()
        self._fences: Fences[Mark] = Fences()
        self._pages_up = 0
        self._closed = False
        try:
            self._arena = device.arena(max(1, capacity // PAGE * PAGE))
        except MemoryError as error:
            free, _ = device.memory()
            raise DeviceFull(
                f"{device.name} has no {format_size(capacity)} for [kv] device in one piece: {format_size(free)} are "
                "free; lower it, or device_memory"
            ) from error
        self._copies = device.copies()
        self._capacity = capacity
        pool.add_device(capacity, device, self._lift)

    # --- pages that stay ----------------------------------------------------------------------------------------------

    def offer(self, keys: Page, values: Page, *, newer: int) -> None:
        """Two full pages, of the same tokens, may get a copy; ``newer`` as in DevicePages.give_room."""
        if self._capacity:
            self._pool.post(Offer(keys, values, newer))

    def look(self, keys: Sequence[Page]) -> list[Pair]:
        """The copies of those pages of ``keys`` that are on the device, in their order; they stay until ``looked``.
        Raises Closed."""
        if self._closed:
            raise Closed(CLOSED)
        return [*self._pool.look(keys)]

    def looked(self, pairs: Sequence[Pair]) -> None:
        """All that the calling thread wanted to know of ``pairs`` has been given to the device to compute."""
        mark = self._device.mark() if pairs else None
        if mark is not None:
            with no_waiting, self._lock:  # before their room can be given away
                for pair in pairs:
                    self._fences.used(pair.at, pair.size, mark)
        self._pool.post(Looked([pair.keys for pair in pairs]))

    def numbers(self, pair: Pair, plane: int, shape: PageShape) -> torch.Tensor:
        """The keys (``plane`` 0) or values (1) of ``pair``, looked at, on the device: [H, P, D]."""
        at = pair.at + (pair.keys.size if plane else 0)
        return self._arena.tensor(at, shape.dtype, (shape.heads, shape.tokens, shape.dim))

    # --- what passes --------------------------------------------------------------------------------------------------

    @may_be_interrupted
    def up(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of keys and values [H, n, D] on the device, which are there. Raises Closed, ReadError."""
        targets = torch.empty_like(keys, device=self.compute), torch.empty_like(values, device=self.compute)
        # What computed on this memory before may not be done with it.
        after = [mark] if (mark := self._device.mark()) is not None else []
        problems: list[Exception | None] = []
        ended = threading.Semaphore(0)

        def done(problem: Exception | None) -> None:
            problems.append(problem)
            ended.release()

        with no_waiting, self._lock:
            if self._closed:
                raise Closed(CLOSED)
            for source, target in zip((keys, values), targets, strict=True):
                self._copies.up(source, target, after, done)
        for _ in targets:
            ended.acquire()
        for problem in filter(None, problems):
            raise ReadError(
                f"KV pages cannot be copied to {self._device.name} ({problem}); nothing was computed on them. Try it "
                "again, or take [compute] device out"
            ) from problem
        return targets

    # --- the whole ----------------------------------------------------------------------------------------------------

    def usage(self) -> UpperUsage:
        """What is in use now, and what has happened."""
        pool = self._pool.usage()
        with no_waiting, self._lock:
            return UpperUsage(pool.device_bytes, pool.device_budget, self._pages_up, self._copies.copied.size)

    def close(self) -> None:
        """Let copies land, give the memory back; the pool is still there. Idempotent."""
        with no_waiting, self._lock:
            self._closed = True
        self._copies.close()
        self._arena.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _lift(self, pair: Pair) -> None:
        """Begin to copy ``pair``; under the pool's lock, so copies are made in the order in which room is given."""
        problems: list[Exception | None] = []

        def ended(problem: Exception | None) -> None:
            problems.append(problem)
            if len(problems) == 2:
                self._landed(pair, failed=any(problems))

        with no_waiting, self._lock:
            is_closed, after, at = self._closed, self._fences.before(pair.at, pair.size), pair.at
            if not is_closed:
                for page in pair.pages:
                    target = self._arena.tensor(at, torch.uint8, (page.size,))
                    self._copies.up(self._pool.view(page), target, after, ended)
                    at += page.size
        if is_closed:
            self._pool.post(Lifted(*pair.pages, failed=True))

    def _landed(self, pair: Pair, *, failed: bool) -> None:
        """On the copies' thread."""
        if not failed:
            with no_waiting, self._lock:
                self._pages_up += 2
        self._pool.post(Lifted(*pair.pages, failed=failed))
