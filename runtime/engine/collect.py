"""Collects the statistics of a loaded model from its components."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from ...tiering.planner.counters import Counters, found_ratio
from ...tiering.policy.prefetch.predictor_choice import Predictors
from ...tiering.units import BlockId
from ..kv.cache.unbounded import Unbounded
from ..kv.pages.counters import PoolUsage
from ..kv.pages.device_pages import UpperUsage
from ..kv.views.selector import SelectionStats
from ..modules.model_forward import Forwards
from ..tiers.bridge import Bridge
from ..tiers.compute_tier import ComputeTier
from ..tiers.device.misses import Misses
from ..tiers.device.tier import DeviceTier, DeviceUsage
from ..tiers.embedding_rows import RowReader
from ..tiers.kept_copies import KeptCopies
from ..tiers.plane_counts import PlaneCounts
from ..tiers.pressure import Pressure
from .stats import DeviceStats, HostStats, KVStats, Stats, WeightStats

if TYPE_CHECKING:
    from ..kv.cache.tier import KVTier


@dataclass(frozen=True, slots=True)
class Components:
    """What a model's statistics are read from."""

    host: Bridge
    budget: int
    """Bytes of host memory for weights."""
    tier: ComputeTier
    device: DeviceTier | None
    misses: Misses | None
    rows: Mapping[BlockId, RowReader]
    row_drives: Mapping[BlockId, int]
    """The drive of each block that is read by row."""
    pressure: Pressure
    kv: "KVTier | None"
    forwards: Forwards
    predictors: Predictors
    planes: PlaneCounts
    copies: KeptCopies

    def weights_resident(self) -> int:
        """Bytes of weights in host memory."""
        return self.host.resident_bytes() + sum(reader.resident_bytes for reader in self.rows.values())

    def collect(self) -> Stats:
        """A snapshot since loading; the prefixes, which lie outside, have none."""
        host = self.host.counters()
        asked = host if self.device is None else self.tier.bridge.counters()
        device = DeviceUsage() if self.device is None else self.device.usage()
        pages = PoolUsage() if self.kv is None else self.kv.pool.usage()
        return Stats(
            tokens=self.forwards.tokens,
            forwards=self.forwards.count,
            weights=self._weights(host, asked, device),
            host=self._host(pages),
            device=self._device(asked, device),
            kv=_kv(self.kv, pages, self.forwards.unbounded),
        )

    @property
    def _computed(self) -> int:
        return 0 if self.misses is None else self.misses.count

    def _weights(self, host: Counters, asked: Counters, device: DeviceUsage) -> WeightStats:
        """``host`` counts what the host tier has read; ``asked`` what was asked of the tier that is computed on."""
        row_bytes = sum(reader.bytes_read for reader in self.rows.values())
        row_seconds = sum(reader.seconds for reader in self.rows.values())
        expert_misses = asked.expert_misses + self._computed
        if self.tier.placement.expert_count:
            ratio = found_ratio(asked.expert_hits, expert_misses, host.expert_misses)
        else:
            ratio = found_ratio(asked.dense_hits, asked.dense_misses, host.dense_misses)
        return WeightStats(
            flash_bytes_read=host.flash_bytes + row_bytes + sum(device.bypass_bytes),
            flash_read_seconds=host.busy_seconds + row_seconds + device.bypass_seconds,
            demand_bytes=host.demand_bytes,
            prefetch_bytes=host.prefetch_bytes,
            guess_bytes=host.guess_bytes,
            guess_bytes_used=host.guess_bytes_used,
            refine_bytes=host.refine_bytes,
            refine_failures=host.refine_failures,
            row_bytes=row_bytes,
            changed_bytes=self.copies.size,
            drive_bytes=self._drive_bytes(host, device),
            reads=host.reads,
            expert_hits=asked.expert_hits,
            expert_misses=expert_misses,
            dense_hits=asked.dense_hits,
            dense_misses=asked.dense_misses,
            evictions=host.evictions,
            hit_ratio=ratio,
            stall_seconds=self.tier.bridge.stall_seconds,
            products_by_planes=self.planes.counts(),
            eviction=self.tier.bridge.eviction,
            predictor=self.predictors.followed,
            predictors={name: replace(record) for name, record in self.predictors.records.items()},
        )

    def _drive_bytes(self, host: Counters, device: DeviceUsage) -> tuple[int, ...]:
        found = [*map(sum, zip_longest(host.drive_bytes, device.bypass_bytes, fillvalue=0))]
        for block, reader in self.rows.items():
            found[self.row_drives[block]] += reader.bytes_read
        return tuple(found)

    def _host(self, pages: PoolUsage) -> HostStats:
        elastic = self.pressure.elastic
        return HostStats(
            resident_bytes=self.weights_resident() + pages.host_bytes,
            bytes=self.pressure.division.host_bytes + pages.host_limit,
            budget=self.budget + pages.host_budget,
            limit=elastic.limit,
            floor=elastic.floor,
            shrinks=elastic.shrinks,
            growths=elastic.growths,
        )

    def _device(self, asked: Counters, device: DeviceUsage) -> DeviceStats:
        return DeviceStats(
            bytes=device.bytes,
            budget=device.budget,
            evictions=0 if self.device is None else asked.evictions,
            bytes_copied=device.copied.size,
            copy_seconds=device.copied.seconds,
            misses_computed=self._computed,
        )


def _kv(kv: "KVTier | None", pages: PoolUsage, unbounded: Unbounded) -> KVStats:
    """``pages`` are those of ``kv``; ``unbounded`` the caches that transformers keeps."""
    device = UpperUsage() if kv is None or kv.device_pages is None else kv.device_pages.usage()
    selected = SelectionStats() if kv is None else kv.selection_stats()
    return KVStats(
        host_bytes=pages.host_bytes,
        host_budget=pages.host_budget,
        host_limit=pages.host_limit,
        device_bytes=device.device_bytes,
        device_budget=device.device_budget,
        flash_bytes=pages.flash_bytes,
        bytes_read=pages.counters.bytes_read,
        bytes_written=pages.counters.bytes_written,
        pages_read=pages.counters.pages_read,
        pages_up=device.pages_up,
        bytes_up=device.bytes_up,
        stall_seconds=pages.counters.stall_seconds,
        pages_looked_at=selected.pages_read,
        pages_passed_over=selected.pages - selected.pages_read,
        pages_dropped=selected.dropped,
        dropped_share=selected.dropped_share,
        exact_layers=selected.exact_layers,
        unbounded_bytes=unbounded.size(),
        unbounded_peak_bytes=unbounded.peak,
        unbounded_problem=unbounded.problem,
    )
