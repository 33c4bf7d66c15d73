"""KV on the device: the copies of pages that lie there, and the way up for what is only looked at in passing."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ....kernels.devices.base import Device, Mark
from ....kernels.devices.fences import Fences
from ....kernels.kv.base import PageShape
from ....kernels.waiting import no_waiting
from ....tiering.errors import Closed, DeviceFull, ReadError
from ....tiering.kv.device_pages import Pair, UpperPages
from ....tiering.kv.pages import Page
from ....tiering.units import format_size
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
        self._books = UpperPages(capacity)
        self._fences: Fences[Mark] = Fences()
        self._pages_up = 0
        self._closed = False
        try:
            self._arena = device.arena(max(1, self._books.capacity))
        except MemoryError as error:
            free, _ = device.memory()
            raise DeviceFull(
                f"{device.name} has no {format_size(capacity)} for [kv] device in one piece: {format_size(free)} are "
                "free; lower it, or device_memory"
            ) from error
        self._copies = device.copies()
        pool.lock_pages(device)
        pool.freed = self._forget

    # --- pages that stay ----------------------------------------------------------------------------------------------

    def offer(self, keys: Page, values: Page, *, newer: int) -> None:
        """Two full pages, of the same tokens, may get a copy; ``newer`` as in UpperPages.give_room."""
        if not self._books.capacity:
            return
        held = self._pool.hold([keys, values])
        if len(held) < 2 or not self._copied_up(keys, values, newer):  # flash has what has left memory already
            self._pool.release(held)

    def look(self, keys: Sequence[Page]) -> list[Pair]:
        """The copies of those pages of ``keys`` that are on the device, in their order; they stay until ``looked``.
        Raises Closed."""
        with no_waiting, self._lock:
            if self._closed:
                raise Closed("this model was closed, and its KV with it; load it again")
            return self._books.look(keys)

    def looked(self, pairs: Sequence[Pair]) -> None:
        """All that the calling thread wanted to know of ``pairs`` has been given to the device to compute."""
        mark = self._device.mark() if pairs else None
        with no_waiting, self._lock:
            if mark is not None:
                for pair in pairs:
                    self._fences.used(pair.at, pair.size, mark)
            self._books.looked(pairs)

    def numbers(self, pair: Pair, plane: int, shape: PageShape) -> torch.Tensor:
        """The keys (``plane`` 0) or values (1) of ``pair``, looked at, on the device: [H, P, D]."""
        at = pair.at + (pair.keys.size if plane else 0)
        return self._arena.tensor(at, shape.dtype, (shape.heads, shape.tokens, shape.dim))

    # --- what passes --------------------------------------------------------------------------------------------------

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
                raise Closed("this model was closed, and its KV with it; load it again")
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
        with no_waiting, self._lock:
            return UpperUsage(self._books.used, self._books.capacity, self._pages_up, self._copies.copied.size)

    def close(self) -> None:
        """Let copies land, give the memory back; the pool is still there. Idempotent."""
        with no_waiting, self._lock:
            self._closed = True
        self._copies.close()
        self._arena.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _copied_up(self, keys: Page, values: Page, newer: int) -> bool:
        """Begin to copy two pages, held, if there is room for them; whether their hold ends with the copy."""
        with no_waiting, self._lock:  # rooms are given, and copies begun, in one order
            pair = None if self._closed else self._books.give_room(keys, values, newer=newer)
            if pair is None:
                return False
            problems: list[Exception | None] = []

            def ended(problem: Exception | None) -> None:
                problems.append(problem)
                if len(problems) == 2:
                    self._landed(pair, failed=any(problems))

            after, at = self._fences.before(pair.at, pair.size), pair.at
            for page in pair.pages:
                target = self._arena.tensor(at, torch.uint8, (page.size,))
                self._copies.up(self._pool.view(page), target, after, ended)
                at += page.size
            return True

    def _landed(self, pair: Pair, *, failed: bool) -> None:
        """On the copies' thread."""
        with no_waiting, self._lock:
            if failed:  # they are looked at where they are
                self._books.forget(pair.keys)
            else:
                self._books.landed(pair)
                self._pages_up += 2
        self._pool.release(pair.pages)

    def _forget(self, page: Page) -> None:
        """Under the pool's lock."""
        with no_waiting, self._lock:
            self._books.forget(page)
