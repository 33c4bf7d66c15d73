"""The engine of one loaded model: bundle, arena, planner and driver, built from a placement and taken down again."""

import _thread
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import nn

from ...kernels.devices.base import DeviceArena
from ...kernels.memory.arena import Arena
from ...kernels.memory.heap import trim
from ...kernels.products.row_parts import VERDICTS
from ...kernels.waiting import may_wait
from ...tiering.driving.ports import Machine
from ...tiering.errors import TraceError
from ...tiering.events import HOUSE, Slot
from ...tiering.planner.counters import found_ratio
from ...tiering.planner.regions import EXPERTS
from ...tiering.planner.setup import device_setup, setup_of
from ...tiering.policy.placement.placement import Placement, SizedBlock
from ...tiering.policy.placement.shrinking import Divisions
from ...tiering.policy.prefetch.predictors import Predictors
from ...tiering.policy.reads import Reading
from ...tiering.progress import Progress
from ...tiering.store.bundle.flash import BundleFlash
from ...tiering.store.bundle.manifest import Block
from ...tiering.store.bundle.reader import Bundle
from ...tiering.units import BlockId, align_up
from ..experts.guessing import BOTH, ROUTER, TOGETHER
from ..kv.cache.tier import Chosen, KVTier
from ..kv.cache.unbounded import Unbounded
from ..kv.pages.counters import PoolUsage
from ..kv.pages.device_pages import UpperUsage
from ..machine import bit_trials as verdicts
from ..machine.reading import open_reader
from ..tracing.replay import RunRecording
from ..tracing.trace import TakesNotes, Trace
from .bridge import Bridge
from .device.misses import Misses
from .device.tier import Above, DeviceTier, DeviceUsage
from .embedding_rows import RowReader
from .metrics import Stats
from .planes import PlaneCounts
from .pressure import Pressure
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
        blocks: Sequence[Block],
        placement: Placement,
        divisions: Divisions,
        machine: Machine,
        *,
        eviction: str,
        guess: bool,
        reading: Reading,
        record: str | Path | None = None,
        kv: KVTier | None = None,
        above: Above | None = None,
    ) -> None:
        """``blocks`` are what moves of ``bundle``: its own, or several of them joined. ``divisions`` of ``placement``
        say what stays when ``machine`` runs short of memory. With a device tier ``above``, both are of what passes
        through host memory alone.

        ``eviction`` is a name in EVICTION; ``guess`` allows reads of experts on a guess; ``reading`` says how reads are
        made on each drive; ``record`` is the file for a recording of all that the planner does;
        ``kv``, closed with the engine, is where KV lies, if not with transformers.

        Nothing is read before ``load``. Raises ConfigError where this machine cannot read so, TraceError where
        ``record`` cannot be written, and DeviceFull.
        """
        self.bundle, self.host_placement, self.reading, self.kv = bundle, placement, reading, kv
        self._divisions = divisions
        self.blocks = {block.id: block for block in blocks}
        self.pressure = Pressure(machine, divisions, None if kv is None else kv.pool)
        manifest = bundle.manifest
        passing = blocks if above is None else [block for block in blocks if block.id in above.below]
        setup = setup_of(
            ((block.id, block.extent, manifest.drive_of(block)) for block in passing),
            placement,
            divisions,
            reading,
            drives=len(manifest.drive_bytes),
            eviction=eviction,
            guess=guess,
        )
        self.recording = None if record is None else RunRecording(setup, record)
        """What is recorded of this run, if anything is."""
        planner = setup.planner()
        cache = planner.residency.regions[EXPERTS]
        self._cache = (cache.start, cache.capacity)
        self._host_arena = Arena(max(planner.residency.capacity, 1))
        elastic = self.pressure.elastic
        watch = self.pressure.watch if elastic.floor < elastic.ceiling else None
        self._reader = open_reader(reading, setup.drives)
        flash = BundleFlash(bundle, self._reader)
        self.host = Bridge(planner, flash, self._host_arena, watch=watch, recording=self.recording)
        """The bridge over the host tier."""
        self.device: DeviceTier | None = None
        if above is not None:
            top = device_setup(
                ((SizedBlock(block.id, block.extent.length, block.resident), block.extent) for block in blocks),
                above.placement,
                reading,
                drives=setup.drives,
                eviction=eviction,
                guess=guess,
            )
            try:
                self.device = DeviceTier(above, top, setup, bundle, self.host, self._host_arena)
            except BaseException:
                self._close_host()
                raise
        self.bridge: Bridge = self.host if self.device is None else self.device.bridge
        """The way to the tier that is computed on; the next three are that tier's too."""
        self.arena: DeviceArena = self._host_arena if self.device is None else self.device.arena
        self.placement = placement if self.device is None else self.device.placement
        self.compute = torch.device("cpu") if self.device is None else self.device.compute
        """Where torch computes."""
        self.views = AllViews(self.arena)
        self.grouped = above is not None and above.grouped
        """Whether experts may be computed together, in sums of another order."""
        self.misses: Misses | None = None
        """Who decides which experts the CPU computes that are not on the device, if it may."""
        if above is not None and above.aside and self.device is not None:
            self.misses = Misses(self.device, self.host, AllViews(self._host_arena))
        by_row = (*self.placement.by_row, *divisions.by_row)
        self.predictors = Predictors((ROUTER, BOTH, TOGETHER))
        """Who guesses experts; one for all layers."""
        self._expert_bytes = placement.expert_total_bytes / max(1, placement.expert_count)
        self.rows = {block: RowReader(bundle, self.blocks[block], self.compute) for block in by_row}
        self.pinned: dict[BlockId, Slot] = {}
        self.elastic = frozenset(divisions.elastic)
        """Blocks that are leased, though they mostly stay in memory."""
        self.planes = PlaneCounts()
        """How finely experts were computed."""
        self._unbounded = Unbounded()
        self._lock = threading.Lock()
        self._tokens = self._forwards = 0
        self._trace: Trace | None = None

    def load(self, progress: Progress) -> None:
        """Read what stays in memory. Raises what reading raises."""
        prefaulting, until = self._prefault(), time.monotonic() + _PATIENCE
        tiers = [(self.host, self.host_placement, [*self.host_placement.resident, *self._divisions.bound])]
        if self.device is not None:
            stay = self.device.placement
            tiers.insert(0, (self.bridge, stay, [*stay.resident, *stay.pinned]))
        progress.start("loading", sum(stay.resident_bytes + stay.pinned_bytes for _, stay, _ in tiers))
        for bridge, _, wanted in tiers:
            for block, slot in bridge.acquire(wanted, stream=HOUSE):
                if bridge is self.bridge:
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
        threads = [
            threading.Thread(target=self._host_arena.prefault, args=span, name=name, daemon=True) for span in spans
        ]
        for thread in threads:
            thread.start()
        return threads

    def begin_forward(self) -> None:
        """The calling thread enters the model's forward."""
        speculation = self.bridge.speculation
        self.predictors.tick(price=speculation.price, read_seconds=speculation.pace * self._expert_bytes)
        self.bridge.begin()

    def count_forward(self, tokens: int) -> None:
        """One more call of the model, with ``tokens`` tokens in it."""
        with self._lock:
            self._forwards += 1
            self._tokens += tokens
        if (recorder := self.bridge.recorder) is not None:
            recorder.tokens(tokens)
        if tokens > _PROMPT and self.native:
            trim()

    def note_cache(self, cache: object) -> None:
        """A forward has filled ``cache``, or none (None)."""
        size = self._unbounded.add(cache)
        # KV in pages is bounded, and a device's is in its own memory.
        if self.kv is None and self.device is None and not self._unbounded.problem:
            self._unbounded.check(size, self._weights_resident(), self.placement.budget)

    def _weights_resident(self) -> int:
        return self.host.resident_bytes() + sum(reader.resident_bytes for reader in self.rows.values())

    @property
    def native(self) -> bool:
        """Whether the CPU computes, so that our own products may: these never see an address of a device."""
        return self.compute.type == "cpu"

    def current(self) -> AbstractContextManager[None]:
        """Entered by who computes; see Device.current."""
        return nullcontext() if self.device is None else self.device.device.current()

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
            files = [file.name for file in self.bundle.manifest.files]
            others: list[TakesNotes] = [] if self.kv is None else [self.kv.pool]
            others += [] if self.device is None else [self.host, self.device.uplink]
            self._trace = Trace(model, self.bridge, files, path, others=others)
            return self._trace

    def stats(self) -> Stats:
        """A snapshot since loading."""
        counters, elastic = self.host.counters(), self.pressure.elastic
        row_bytes = sum(reader.bytes_read for reader in self.rows.values())
        kv = PoolUsage() if self.kv is None else self.kv.pool.usage()
        upper = UpperUsage() if self.kv is None or self.kv.upper is None else self.kv.upper.usage()
        chosen = Chosen() if self.kv is None else self.kv.chosen()
        above = DeviceUsage() if self.device is None else self.device.usage()
        drive_bytes = [*map(sum, zip_longest(counters.drive_bytes, above.straight_bytes, fillvalue=0))]
        for block, reader in self.rows.items():
            drive_bytes[self.bundle.manifest.drive_of(self.blocks[block])] += reader.bytes_read
        asked = counters if self.device is None else self.bridge.counters()
        computed = 0 if self.misses is None else self.misses.count
        if self.placement.expert_count:
            ratio = found_ratio(asked.expert_hits, asked.expert_misses + computed, counters.expert_misses)
        else:
            ratio = found_ratio(asked.dense_hits, asked.dense_misses, counters.dense_misses)
        return Stats(
            tokens=self._tokens,
            forwards=self._forwards,
            flash_bytes_read=counters.flash_bytes + row_bytes + sum(above.straight_bytes),
            flash_read_seconds=counters.busy_seconds
            + sum(reader.seconds for reader in self.rows.values())
            + above.straight_seconds,
            demand_bytes=counters.demand_bytes,
            prefetch_bytes=counters.prefetch_bytes,
            guess_bytes=counters.guess_bytes,
            guess_bytes_used=counters.guess_bytes_used,
            refine_bytes=counters.refine_bytes,
            refine_failures=counters.refine_failures,
            products_by_planes=self.planes.counts(),
            eviction=self.bridge.eviction,
            predictor=self.predictors.followed,
            predictors={name: replace(record) for name, record in self.predictors.records.items()},
            row_bytes=row_bytes,
            drive_bytes=tuple(drive_bytes),
            reads=counters.reads,
            expert_hits=asked.expert_hits,
            expert_misses=asked.expert_misses + computed,
            misses_computed=computed,
            dense_hits=asked.dense_hits,
            dense_misses=asked.dense_misses,
            evictions=counters.evictions,
            hit_ratio=ratio,
            stall_seconds=self.bridge.stall_seconds,
            resident_bytes=self._weights_resident() + kv.host_bytes,
            host_bytes=self.pressure.division.host_bytes + kv.host_limit,
            host_budget=self.host_placement.budget + kv.host_budget,
            host_limit=elastic.limit,
            host_floor=elastic.floor,
            host_shrinks=elastic.shrinks,
            host_growths=elastic.growths,
            kv_host_bytes=kv.host_bytes,
            kv_host_budget=kv.host_budget,
            kv_host_limit=kv.host_limit,
            kv_device_bytes=upper.device_bytes,
            kv_device_budget=upper.device_budget,
            kv_flash_bytes=kv.flash_bytes,
            kv_pages_up=upper.pages_up,
            kv_bytes_up=upper.bytes_up,
            kv_bytes_read=kv.counters.bytes_read,
            kv_bytes_written=kv.counters.bytes_written,
            kv_pages_read=kv.counters.pages_read,
            kv_stall_seconds=kv.counters.stall_seconds,
            kv_pages_looked_at=chosen.looked_at,
            kv_pages_passed_over=chosen.pages - chosen.looked_at,
            kv_pages_dropped=chosen.dropped,
            kv_dropped_share=chosen.dropped_share,
            device_bytes=above.bytes,
            device_budget=above.budget,
            device_evictions=asked.evictions if self.device is not None else 0,
            bytes_copied=above.copied.size,
            copy_seconds=above.copied.seconds,
            kv_exact_layers=chosen.exact_layers,
            kv_unbounded_bytes=self._unbounded.size(),
            kv_unbounded_peak_bytes=self._unbounded.peak,
            kv_unbounded_problem=self._unbounded.problem,
        )

    def close(self) -> None:
        """Stop reading, give the memory back as soon as no tensor lies in it, write what is recorded.

        The garbage collector closes a model wherever it runs, also in a thread that has a lock which this needs. Where
        ``may_wait`` says so, a thread of its own does it all, soon; nothing is waited for, not even for its start.
        Raises TraceError, when all else is done, if something cannot be written.
        """
        if may_wait():
            self._close()
        else:
            _thread.start_new_thread(self._close, ())

    def _close(self) -> None:
        if self.device is not None:
            self.device.close()
        self._close_host()
        if self.kv is not None:
            self.kv.close()
        self.views.forget()
        if self.misses is not None:
            self.misses.views.forget()
        for reader in self.rows.values():
            reader.close()
        self.bundle.close()
        verdicts.keep(VERDICTS.copy())  # other models may go on adding to it
        for recorded in (self._trace, self.recording):
            if recorded is not None:
                recorded.stop()

    def _close_host(self) -> None:
        self.host.close()
        self._reader.close()
        self._host_arena.close()
