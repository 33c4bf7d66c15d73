"""The engine of one loaded model: bundle, tiers, planners and drivers, built from a placement and taken down again."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...kernels.machine.power import is_on_battery
from ...kernels.process.ending import ENDING
from ...kernels.process.forks import leave_at_fork
from ...kernels.products.row_parts import BIT_TRIALS
from ...kernels.waiting import may_wait, no_waiting
from ...tiering.driving.background import Hold
from ...tiering.driving.ports import Machine
from ...tiering.errors import TraceError
from ...tiering.events import PINNING_STREAM, Slot
from ...tiering.planner.arrangement import Arrangement
from ...tiering.planner.occupancy import TierUse, look_at
from ...tiering.planner.planner import Planner
from ...tiering.planner.setup import Setup
from ...tiering.policy.lessons import Run, summarise
from ...tiering.policy.prefetch.predictor_choice import BOTH, CO_ACTIVATION, ROUTER, Predictors
from ...tiering.progress import Progress
from ...tiering.store.bundle.manifest import Block
from ...tiering.store.bundle.reader import Bundle
from ...tiering.units import BlockId
from ..experts.tier_experts import ExpertMemory
from ..kv.cache.unbounded import Unbounded
from ..machine import bit_trials
from ..machine.contention import CONTENTION
from ..modules.attach import attach
from ..modules.model_forward import Around, Forwards
from ..modules.run_meter import Counted, RunMeter
from ..tiers.bridge import Bridge
from ..tiers.compute_tier import ComputeTier
from ..tiers.device.misses import Misses
from ..tiers.device.tier import DeviceTier, DeviceUse
from ..tiers.embedding_rows import RowReader
from ..tiers.host import HostTier
from ..tiers.kept_copies import KeptCopies
from ..tiers.model_weights import ModelWeights
from ..tiers.plane_counts import PlaneCounts
from ..tiers.pressure import Pressure
from ..tiers.views import AllViews
from ..tracing.trace import TakesNotes, Trace
from .abandoned import ABANDONED
from .collect import Components
from .prefault import start_prefault
from .stats import Stats

if TYPE_CHECKING:
    from ..kv.cache.tier import KVTier
    from ..tracing.run_recording import RunRecording

_PATIENCE = 2.0
"""Seconds that loading waits for prefaulting at most: the rest comes while the model is used."""


class Engine:
    """Weights of one model under one budget. Thread-safe; ``close`` is idempotent."""

    def __init__(
        self,
        bundle: Bundle,
        blocks: Sequence[Block],
        arrangement: Arrangement,
        machine: Machine,
        *,
        record: str | Path | None = None,
        kv: "KVTier | None" = None,
        device_use: DeviceUse | None = None,
        teach: Callable[[Run], None] | None = None,
    ) -> None:
        """``blocks`` are what moves of ``bundle``, its own or several of them joined, as ``arrangement`` has them; the
        host tier shrinks and grows with ``machine``. ``device_use`` says how the device is used that ``arrangement``
        has, if it has one.

        ``record`` is the file for a recording of all that the planner does; ``kv``, closed with the engine, is where KV
        lies, if not with transformers. ``teach`` keeps what the run has shown, at its end.

        Nothing is read before ``load``. Raises ConfigError where this machine cannot read so, TraceError where
        ``record`` cannot be written, and DeviceFull.
        """
        self.arrangement = arrangement
        """What was decided about the model's memory before it was loaded."""
        self.bundle, self.host_placement, self.reading, self.kv = bundle, arrangement.host, arrangement.reading, kv
        self._divisions, self._teach = arrangement.divisions, teach
        self.blocks = {block.id: block for block in blocks}
        self.pressure = Pressure(machine, arrangement.divisions, None if kv is None else kv.pool)
        setup = arrangement.host_setup
        self.recording = None if record is None else _start_recording(setup, record)
        """The recording of this run, if one was asked for."""
        if self.recording is not None and kv is not None:
            kv.pool.record(self.recording)
        elastic = self.pressure.elastic
        watch = self.pressure.watch if elastic.floor < elastic.ceiling else None
        self.host_tier = HostTier(setup, bundle, arrangement.reading, watch=watch, recording=self.recording)
        self.host = self.host_tier.bridge
        """The bridge over the host tier."""
        self.device: DeviceTier | None = None
        """The device tier; None where the CPU computes."""
        try:
            if device_use is not None:
                self.device = DeviceTier(device_use, arrangement, bundle, self.host, self.host_tier.arena)
            self.tier = self._compute_tier()
            """The tier that is computed on."""
            self._build(device_use)
        except BaseException:
            self._close_tiers()
            raise
        self._lock = threading.Lock()
        self._trace: Trace | None = None
        self._watchers = 0
        self._background = Hold()
        self._cores = CONTENTION.hold()
        self.forked = False
        """Whether this process is a child of the one whose engine this is."""
        leave_at_fork(self)

    def leave_to_parent(self) -> None:
        """As Inherited.leave_to_parent."""
        self.forked = True

    def _close_tiers(self) -> None:
        if self.device is not None:
            self.device.close()
        self.host_tier.close()

    def _compute_tier(self) -> ComputeTier:
        if self.device is None:
            arena, cpu = self.host_tier.arena, torch.device("cpu")
            return ComputeTier(self.host, arena, AllViews(arena), self.host_placement, cpu, "host_memory")
        device = self.device
        views = AllViews(device.arena)
        return ComputeTier(device.bridge, device.arena, views, device.placement, device.compute, "device_memory")

    def _build(self, device_use: DeviceUse | None) -> None:
        """What stands on the tiers: rows, experts, forwards, statistics."""
        self.misses: Misses | None = None
        if device_use is not None and device_use.host_experts and self.device is not None:
            self.misses = Misses(self.device, self.host, AllViews(self.host_tier.arena))
        by_row = (*self.tier.placement.by_row, *self._divisions.by_row)
        self.rows = {block: RowReader(self.bundle, self.blocks[block], self.tier.compute) for block in by_row}
        self.pinned: dict[BlockId, Slot] = {}
        self.elastic = frozenset(self._divisions.elastic)
        """Blocks that are leased, although they mostly stay in memory."""
        copies = KeptCopies(self.tier.budget, self._leave)
        self.weights = ModelWeights(
            self.tier, self.blocks, self.bundle.manifest.tied, self.pinned, self.rows, self.elastic, copies
        )
        grouped = device_use is not None and device_use.grouped
        self._experts = ExpertMemory(self.tier, PlaneCounts(), copies, grouped=grouped, misses=self.misses)
        self._meter = RunMeter(self._count, lambda: CONTENTION.taken)
        self._predictors = Predictors((ROUTER, BOTH, CO_ACTIVATION))
        placement, bounded = self.host_placement, self.kv is not None or self.device is not None
        self.forwards = Forwards(
            self.tier,
            self.device,
            self._predictors,
            expert_bytes=placement.expert_total_bytes / max(1, placement.expert_count),
            # KV in pages is bounded, and a device's is in its own memory.
            check_caches=None if bounded else self._check_caches,
            meter=self._meter,
        )
        self._components = Components(
            host=self.host,
            budget=placement.budget,
            tier=self.tier,
            device=self.device,
            misses=self.misses,
            rows=self.rows,
            row_drives={block: self.bundle.manifest.drive_of(self.blocks[block]) for block in by_row},
            pressure=self.pressure,
            kv=self.kv,
            forwards=self.forwards,
            predictors=self._predictors,
            planes=self._experts.planes,
            copies=copies,
        )

    def _leave(self, size: int) -> bool:
        """Have the tier that is computed on leave ``size`` bytes of its budget to others. Whether it can."""
        if self.device is None:
            return self.pressure.leave(self.host, size)
        return self.device.arena.length + size <= self.device.placement.budget

    def _count(self) -> Counted:
        counters = self.host.counters()
        return Counted(self.tier.bridge.stall_seconds, counters.busy_seconds, counters.flash_bytes)

    @property
    def bridge(self) -> Bridge:
        """The way to the tier that is computed on."""
        return self.tier.bridge

    def load(self, progress: Progress) -> None:
        """Read what stays in memory. Raises what reading raises."""
        prefaulting = start_prefault(self.host_tier.arena, *self.host_tier.experts)
        until = time.monotonic() + _PATIENCE
        tiers = [(self.host, self.host_placement, [*self.host_placement.resident, *self._divisions.bound])]
        if self.device is not None:
            stay = self.device.placement
            tiers.insert(0, (self.tier.bridge, stay, [*stay.resident, *stay.pinned]))
        progress.start("loading", sum(stay.resident_bytes + stay.pinned_bytes for _, stay, _ in tiers))
        for bridge, _, wanted in tiers:
            for block, slot in bridge.acquire(wanted, stream=PINNING_STREAM):
                if bridge is self.tier.bridge:
                    self.pinned[block] = slot
                progress.advance(slot.length)
        for block in filter(self.elastic.__contains__, self.blocks):  # the others are read ahead meanwhile
            for _, slot in self.tier.bridge.acquire([block]):
                self.tier.bridge.release(block)
                progress.advance(slot.length)
        for thread in prefaulting:
            thread.join(max(0.0, until - time.monotonic()))

    def attach(self, model: nn.Module, around: Around | None = None) -> None:
        """Bind ``model``, built on placeholders, to the weights, which are loaded; ``around`` as for Forwards.run."""
        attach(model, self.weights, self._experts, self._predictors, self.forwards, around)

    def _check_caches(self, size: int, unbounded: Unbounded) -> None:
        unbounded.check(size, self._components.weights_resident(), self.host_placement.budget)

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
            self._trace = Trace(model, self.tier.bridge, files, path, others=others)
            return self._trace

    def check_integrity(self) -> None:
        """Raise AssertionError unless the accounts of both tiers add up."""
        self.host.check_integrity()
        if self.device is not None:
            self.device.bridge.check_integrity()

    def stats(self) -> Stats:
        """A snapshot since loading, without kept prompts."""
        return self._components.collect()

    @contextmanager
    def watch(self) -> Iterator[Callable[[], dict[str, TierUse]]]:
        """As Handle.watch."""
        self._count_uses(1)
        try:
            yield self._look
        finally:
            self._count_uses(-1)

    def _look(self) -> dict[str, TierUse]:
        tiers = {"host": self.host} if self.device is None else {"device": self.device.bridge, "host": self.host}
        return {name: bridge.look(look_at) for name, bridge in tiers.items()}

    def _count_uses(self, change: int) -> None:
        """So many more watch: uses are counted as long as somebody does."""

        def switch(planner: Planner) -> None:
            self._watchers += change
            if not self._watchers:
                planner.uses = None
            elif planner.uses is None:
                planner.uses = Counter()

        self.tier.bridge.look(switch)

    def close(self) -> None:
        """Stop reading, give the memory back as soon as no tensor lies in it, write what is recorded.

        Raises TraceError, when all else is done, if something cannot be written.
        """
        if self.forked:  # all is the parent's: the system takes back what this process has of it
            return
        if ENDING.on:  # threads stopped in the middle, and all memory goes with the process
            self._write_records()
            self._keep_lesson()
        else:
            self._close()

    def abandon(self) -> None:
        """As ``close``, for the garbage collector and the end of the interpreter: nothing is waited for. Where no lock
        is held that a recording needs, it is written now."""
        if self.forked or not threading.main_thread().is_alive():  # no other thread computes
            self.close()
            return
        try:
            if may_wait():
                with no_waiting:
                    self._write_records()
        finally:
            ABANDONED.close(self._close)

    def _close(self) -> None:
        self._close_tiers()
        if self.kv is not None:
            self.kv.close()
        self.tier.views.forget()
        if self.misses is not None:
            self.misses.views.forget()
        for reader in self.rows.values():
            reader.close()
        self.bundle.close()
        self._cores.close()
        bit_trials.keep(BIT_TRIALS.copy())  # other models may go on adding to it
        self._keep_lesson()
        try:
            self._write_records()
        finally:
            self._background.close()

    def _keep_lesson(self) -> None:
        """Keep what this run teaches, once. One whose memory shrank is no example of its budget."""
        teach, self._teach = self._teach, None
        if teach is None or self.pressure.elastic.shrinks:
            return
        budget = self.arrangement.budgets.weights_host
        run = summarise(self._meter.windows(), time.time(), budget, battery=is_on_battery())
        if run is not None:
            teach(run)

    def _write_records(self) -> None:
        for recorded in (self._trace, self.recording):
            if recorded is not None:
                recorded.stop()


def _start_recording(setup: Setup, record: str | Path) -> "RunRecording":
    from ..tracing.run_recording import RunRecording  # here: few ask for one

    return RunRecording(setup, record)
