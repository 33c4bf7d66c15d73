"""The engine of one loaded model: bundle, arena, planner and driver, built from a placement and taken down again."""

import _thread
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..kernels.arena import Arena
from ..kernels.experts import ROUNDED
from ..kernels.heap import trim
from ..kernels.reading import may_wait
from ..tiering.errors import TraceError
from ..tiering.events import Slot
from ..tiering.limits import EXPERTS, KEPT, PINNED, STREAM, Home
from ..tiering.planner import Planner
from ..tiering.policy.cycle import Cycle
from ..tiering.policy.division import Divisions
from ..tiering.policy.eviction import EVICTION
from ..tiering.policy.placement import Placement
from ..tiering.policy.reads import Reading
from ..tiering.policy.speculation import Speculation
from ..tiering.ports import Machine
from ..tiering.progress import Progress
from ..tiering.residency import Residency
from ..tiering.store.flash import BundleFlash
from ..tiering.store.reader import Bundle
from ..tiering.units import BlockId, align_up
from . import verdicts
from .bridge import HOUSE, Bridge
from .metrics import Stats, hit_ratio
from .pressure import Pressure
from .reading import open_reader
from .rows import RowReader
from .trace import Trace
from .views import AllViews

_PROMPT = 16
"""Tokens above which a forward leaves enough on the heap to be worth giving back."""
_PREFAULTS = 4
"""Threads that ask for memory; under a hypervisor each of them mostly waits for the host."""
_PATIENCE = 2.0
"""Seconds that loading waits for it at most: the rest comes while the model is used."""


class Engine:
    """Weights of one model under one budget. Thread-safe; ``close`` is idempotent."""

    def __init__(
        self,
        bundle: Bundle,
        placement: Placement,
        divisions: Divisions,
        machine: Machine,
        *,
        eviction: str,
        guess: bool,
        reading: Reading,
    ) -> None:
        """``divisions`` of ``placement`` say what stays when ``machine`` runs short of memory.

        ``eviction`` is a name in EVICTION; ``guess`` allows reads of experts on a guess; ``reading`` says how reads are
        made on each drive.

        Nothing is read before ``load``. Raises ConfigError where this machine cannot read so.
        """
        self.bundle, self.placement, self.reading = bundle, placement, reading
        self._divisions = divisions
        self.blocks = {block.id: block for block in bundle.manifest.blocks}
        self.pressure = Pressure(machine, divisions)
        whole = self.pressure.division
        residency = Residency(
            "host",
            {
                PINNED: whole.bound,
                KEPT: whole.kept,
                STREAM: divisions.stream_capacity,
                EXPERTS: whole.experts,
            },
        )
        residency.resize(STREAM, whole.stream)
        self._cache = (residency.regions[EXPERTS].start, whole.experts)
        homes = self._homes(residency.regions[KEPT].start)
        streamed = {*placement.streamed, *divisions.elastic}
        drives = len(bundle.manifest.drive_bytes)
        self.arena = Arena(max(residency.capacity, 1))
        self.views = AllViews(self.arena)
        planner = Planner(
            residency,
            homes,
            cycle=Cycle([block for block in self.blocks if block in streamed]),
            experts=EVICTION[eviction],
            speculation=Speculation(allowed=guess),
            depth=reading.depth,
            read_limit=reading.size,
            drives=drives,
        )
        watch = self.pressure.watch if divisions.floor < divisions.ceiling else None
        self._reader = open_reader(reading, drives)
        self.bridge = Bridge(planner, BundleFlash(bundle, self._reader), self.arena, watch=watch)
        by_row = (*placement.by_row, *divisions.by_row)
        self.rows = {block: RowReader(bundle, self.blocks[block]) for block in by_row}
        self.pinned: dict[BlockId, Slot] = {}
        self.elastic = frozenset(divisions.elastic)
        """Blocks that are leased, though they mostly stay in memory."""
        self._lock = threading.Lock()
        self._tokens = self._forwards = 0
        self._trace: Trace | None = None

    def load(self, progress: Progress) -> None:
        """Read what stays in memory. Raises what reading raises."""
        prefaulting, until = self._prefault(), time.monotonic() + _PATIENCE
        wanted = [*self.placement.resident, *self._divisions.bound]
        progress.start("loading", self.placement.resident_bytes + self.placement.pinned_bytes)
        for block, slot in self.bridge.acquire(wanted, stream=HOUSE):
            self.pinned[block] = slot
            progress.advance(slot.length)
        for block in filter(self.elastic.__contains__, self.blocks):  # the others are read ahead meanwhile
            for _, slot in self.bridge.acquire([block]):
                self.bridge.release(block)
                progress.advance(slot.length)
        for thread in prefaulting:
            thread.join(max(0.0, until - time.monotonic()))

    def _prefault(self) -> list[threading.Thread]:
        """Back the cache of experts with memory while the rest is loaded: a prompt would have to wait for it."""
        where, length = self._cache
        each = align_up(length // _PREFAULTS + 1)
        spans = [(where + start, min(each, length - start)) for start in range(0, length, each)]
        name = "penstock-prefault"
        threads = [threading.Thread(target=self.arena.prefault, args=span, name=name, daemon=True) for span in spans]
        for thread in threads:
            thread.start()
        return threads

    def _homes(self, start: int) -> dict[BlockId, Home]:
        """Where each block goes; the places of the elastic ones begin at ``start``, those that go last come first."""
        bound = {*self.placement.resident, *self._divisions.bound}
        homes = {}
        for block in self.bundle.manifest.blocks:
            region = PINNED if block.id in bound else EXPERTS if block.id.kind == "expert" else STREAM
            homes[block.id] = Home(block.extent, region, self.bundle.manifest.drive_of(block))
        for block_id in self._divisions.elastic:
            home, streamable = homes[block_id], not self._divisions.read_only_by_row(block_id)
            homes[block_id] = replace(home, region=KEPT, place=start, streamable=streamable)
            start += home.extent.length
        return homes

    def count_forward(self, tokens: int) -> None:
        """One more call of the model, with ``tokens`` tokens in it."""
        with self._lock:
            self._forwards += 1
            self._tokens += tokens
        if (recorder := self.bridge.recorder) is not None:
            recorder.tokens(tokens)
        if tokens > _PROMPT:
            trim()

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies in the arena, so that its bytes may change once its lease is given back."""
        return self.arena.address <= tensor.data_ptr() < self.arena.address + self.arena.length

    def trace(self, model: nn.Module, path: str | Path) -> Trace:
        """Begin to record ``model``, which runs on this engine.

        Raises TraceError if it is being recorded already, or ``path`` cannot be written.
        """
        with self._lock:
            if self._trace is not None and self._trace.running:
                raise TraceError(f"a trace to {self._trace.path} is being recorded; stop it before the next one")
            self._trace = Trace(model, self.bridge, [file.name for file in self.bundle.manifest.files], path)
            return self._trace

    def stats(self) -> Stats:
        """A snapshot since loading."""
        counters, elastic = self.bridge.counters(), self.pressure.elastic
        row_bytes = sum(reader.bytes_read for reader in self.rows.values())
        drive_bytes = list(counters.drive_bytes)
        for block, reader in self.rows.items():
            drive_bytes[self.bundle.manifest.drive_of(self.blocks[block])] += reader.bytes_read
        if self.placement.expert_count:
            ratio = hit_ratio(counters.expert_hits, counters.expert_misses)
        else:
            ratio = hit_ratio(counters.dense_hits, counters.dense_misses)
        return Stats(
            tokens=self._tokens,
            forwards=self._forwards,
            flash_bytes_read=counters.demand_bytes + counters.prefetch_bytes + counters.guess_bytes + row_bytes,
            flash_read_seconds=counters.busy_seconds + sum(reader.seconds for reader in self.rows.values()),
            demand_bytes=counters.demand_bytes,
            prefetch_bytes=counters.prefetch_bytes,
            guess_bytes=counters.guess_bytes,
            guess_bytes_used=counters.guess_bytes_used,
            row_bytes=row_bytes,
            drive_bytes=tuple(drive_bytes),
            reads=counters.reads,
            expert_hits=counters.expert_hits,
            expert_misses=counters.expert_misses,
            dense_hits=counters.dense_hits,
            dense_misses=counters.dense_misses,
            evictions=counters.evictions,
            hit_ratio=ratio,
            stall_seconds=self.bridge.stall_seconds,
            resident_bytes=self.bridge.resident_bytes() + sum(reader.resident_bytes for reader in self.rows.values()),
            host_bytes=self.pressure.division.host_bytes,
            host_budget=self.placement.budget,
            host_limit=elastic.limit,
            host_floor=elastic.floor,
            host_shrinks=elastic.shrinks,
            host_growths=elastic.growths,
        )

    def close(self) -> None:
        """Stop reading, give the memory back as soon as no tensor lies in it, and write a trace that is recorded.

        The garbage collector closes a model wherever it runs, also in a thread that has a lock which this needs. Where
        ``may_wait`` says so, a thread of its own does it all, soon; nothing is waited for, not even for its start.
        Raises TraceError, when all else is done, if the trace cannot be written.
        """
        if may_wait():
            self._close()
        else:
            _thread.start_new_thread(self._close, ())

    def _close(self) -> None:
        self.bridge.close()
        self._reader.close()
        self.arena.close()
        self.views.forget()
        for reader in self.rows.values():
            reader.close()
        self.bundle.close()
        verdicts.keep(ROUNDED.copy())  # other models may go on adding to it
        if self._trace is not None:
            self._trace.stop()
