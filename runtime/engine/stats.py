"""Statistics of a loaded model, by component: frozen snapshots, in bytes, seconds and counts since it was loaded."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from ...tiering.policy.prefetch.predictor_choice import PredictorRecord
from ...tiering.units import format_size

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class WeightStats:
    """How weights came to where they are computed on. With a device, hits and misses are those of requests to the
    device: a miss may still be found in host memory."""

    flash_bytes_read: int
    """Bytes of weights read from flash, in all."""
    flash_read_seconds: float
    """Time in which at least one read was in flight."""
    demand_bytes: int
    """Bytes read that a compute thread waited for."""
    prefetch_bytes: int
    """Bytes read ahead that were certain to be wanted."""
    guess_bytes: int
    """Bytes of experts read on a guess."""
    guess_bytes_used: int
    """Those of ``guess_bytes`` that were then asked for."""
    refine_bytes: int
    """Bytes of residuals, read while a drive had nothing else to do."""
    refine_failures: int
    """Residuals that could not be read."""
    row_bytes: int
    """Bytes of embeddings that are read by row."""
    changed_bytes: int
    """Bytes of weights that were changed after loading. They stay in memory, beside the arenas."""
    drive_bytes: tuple[int, ...]
    """Those of ``flash_bytes_read`` that came from each drive of the bundle, its own first."""
    reads: int
    """Reads of the planner; one may hold several neighbouring blocks."""
    expert_hits: int
    """Experts asked for that were in memory."""
    expert_misses: int
    """Experts asked for that were not."""
    dense_hits: int
    """Streamed dense blocks asked for that were in memory."""
    dense_misses: int
    """Streamed dense blocks asked for that were not."""
    evictions: int
    """Blocks that left host memory for others."""
    hit_ratio: float
    """The share of requested experts that were in memory, the device's or the host's; for a model without experts, the
    share of requests for streamed layers that were."""
    stall_seconds: float
    """Time in which compute threads waited for blocks, summed over threads."""
    products_by_planes: Mapping[int, int]
    """How often experts were computed with how many bit planes of their weights, one in most formats. The counts add up
    to all requests for experts."""
    eviction: str
    """The policy that decides now which expert goes."""
    predictor: str
    """The predictor of experts that is followed now."""
    predictors: Mapping[str, PredictorRecord]
    """What trials have shown of each predictor."""


@dataclass(frozen=True, slots=True)
class HostStats:
    """Host memory, of weights and of KV in pages together."""

    resident_bytes: int
    """Bytes that lie in the arenas now."""
    bytes: int
    """Bytes that the arenas may hold now."""
    budget: int
    """Bytes that the configuration allows."""
    limit: int
    """What memory pressure leaves of ``budget`` now."""
    floor: int
    """The least that memory pressure leaves."""
    shrinks: int
    """How often ``limit`` was lowered."""
    growths: int
    """How often ``limit`` was raised."""


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """The device tier; 0 where the CPU computes."""

    bytes: int = 0
    """Bytes of the device's arena."""
    budget: int = 0
    """Bytes of the device's memory that weights may have."""
    evictions: int = 0
    """Blocks that left the device for others."""
    bytes_copied: int = 0
    """Bytes copied from host memory to the device."""
    copy_seconds: float = 0.0
    """Time in which a copy was under way."""
    misses_computed: int = 0
    """Those of ``expert_misses`` that the CPU computed; the others were copied to the device."""


@dataclass(frozen=True, slots=True)
class KVStats:
    """Keys and values. 0 where transformers keeps them, except for the three ``unbounded`` fields, which are about
    these."""

    host_bytes: int = 0
    """Bytes of host memory that hold pages."""
    host_budget: int = 0
    """Bytes of host memory for pages."""
    host_limit: int = 0
    """What memory pressure leaves of ``host_budget`` now."""
    device_bytes: int = 0
    """Bytes of the device that hold copies of the newest pages."""
    device_budget: int = 0
    """Bytes of the device for such copies."""
    flash_bytes: int = 0
    """Bytes of pages on flash."""
    bytes_read: int = 0
    """Bytes of pages read back from flash."""
    bytes_written: int = 0
    """Bytes of pages written to flash."""
    pages_read: int = 0
    """Pages read back from flash."""
    pages_up: int = 0
    """Pages copied to the device to stay there."""
    bytes_up: int = 0
    """Bytes of all copies to the device, also of pages that only pass."""
    stall_seconds: float = 0.0
    """Time in which compute threads waited for pages, or for room for them."""
    pages_looked_at: int = 0
    """Pages that single tokens looked at where [kv] attention chooses among pages."""
    pages_passed_over: int = 0
    """Pages that they did not look at."""
    pages_dropped: int = 0
    """Pages that are gone for good."""
    dropped_share: float = 0.0
    """The share of attention that dropped pages had, of what was counted until then; 0 where none is counted."""
    exact_layers: int = 0
    """Layers that look at all pages all the same: "certified" and "quest" cannot choose among latents."""
    unbounded_bytes: int = 0
    """Bytes of caches that transformers keeps beside ``host_memory`` now: all KV that is not in pages, and states of
    one size. Caches count that the model has computed with and that are alive."""
    unbounded_peak_bytes: int = 0
    """The most bytes that these took after a forward."""
    unbounded_problem: str = ""
    """The warning that was given when these and the weights in memory passed ``host_memory``."""


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Prompts that are kept on flash; 0 where none are kept."""

    prompts: int = 0
    """Prompts that came."""
    hits: int = 0
    """Prompts of which a prefix was found and restored."""
    declined: int = 0
    """Prompts with a stored prefix that would have taken longer to read than to compute."""
    restored: int = 0
    """Tokens that were read instead of computed."""
    bytes_read: int = 0
    """Bytes of prefixes read."""
    written: int = 0
    """Bytes of prefixes written."""
    problem: str = ""
    """What went wrong last. Then prompts are computed, or not kept."""


class Flat(Generic[Value]):
    """A statistic of a component, under a name of its own in ``Stats`` and in reports."""

    def __init__(self, get: "Callable[[Stats], Value]") -> None:
        self._get = get

    def __get__(self, stats: "Stats", owner: "type[Stats]") -> Value:
        return self._get(stats)


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of a loaded model. Every statistic of a component has a flat name too: ``stats.kv_host_bytes`` is
    ``stats.kv.host_bytes``."""

    tokens: int
    """Tokens that went through the model."""
    forwards: int
    """Calls of the model."""
    weights: WeightStats
    host: HostStats
    device: DeviceStats = field(default_factory=DeviceStats)
    kv: KVStats = field(default_factory=KVStats)
    prefix: PrefixStats = field(default_factory=PrefixStats)

    flash_bytes_read = Flat(lambda stats: stats.weights.flash_bytes_read)
    flash_read_seconds = Flat(lambda stats: stats.weights.flash_read_seconds)
    demand_bytes = Flat(lambda stats: stats.weights.demand_bytes)
    prefetch_bytes = Flat(lambda stats: stats.weights.prefetch_bytes)
    guess_bytes = Flat(lambda stats: stats.weights.guess_bytes)
    guess_bytes_used = Flat(lambda stats: stats.weights.guess_bytes_used)
    refine_bytes = Flat(lambda stats: stats.weights.refine_bytes)
    refine_failures = Flat(lambda stats: stats.weights.refine_failures)
    row_bytes = Flat(lambda stats: stats.weights.row_bytes)
    changed_bytes = Flat(lambda stats: stats.weights.changed_bytes)
    drive_bytes = Flat(lambda stats: stats.weights.drive_bytes)
    reads = Flat(lambda stats: stats.weights.reads)
    expert_hits = Flat(lambda stats: stats.weights.expert_hits)
    expert_misses = Flat(lambda stats: stats.weights.expert_misses)
    dense_hits = Flat(lambda stats: stats.weights.dense_hits)
    dense_misses = Flat(lambda stats: stats.weights.dense_misses)
    evictions = Flat(lambda stats: stats.weights.evictions)
    hit_ratio = Flat(lambda stats: stats.weights.hit_ratio)
    stall_seconds = Flat(lambda stats: stats.weights.stall_seconds)
    products_by_planes = Flat(lambda stats: stats.weights.products_by_planes)
    eviction = Flat(lambda stats: stats.weights.eviction)
    predictor = Flat(lambda stats: stats.weights.predictor)
    predictors = Flat(lambda stats: stats.weights.predictors)

    resident_bytes = Flat(lambda stats: stats.host.resident_bytes)
    host_bytes = Flat(lambda stats: stats.host.bytes)
    host_budget = Flat(lambda stats: stats.host.budget)
    host_limit = Flat(lambda stats: stats.host.limit)
    host_floor = Flat(lambda stats: stats.host.floor)
    host_shrinks = Flat(lambda stats: stats.host.shrinks)
    host_growths = Flat(lambda stats: stats.host.growths)

    device_bytes = Flat(lambda stats: stats.device.bytes)
    device_budget = Flat(lambda stats: stats.device.budget)
    device_evictions = Flat(lambda stats: stats.device.evictions)
    bytes_copied = Flat(lambda stats: stats.device.bytes_copied)
    copy_seconds = Flat(lambda stats: stats.device.copy_seconds)
    misses_computed = Flat(lambda stats: stats.device.misses_computed)

    kv_host_bytes = Flat(lambda stats: stats.kv.host_bytes)
    kv_host_budget = Flat(lambda stats: stats.kv.host_budget)
    kv_host_limit = Flat(lambda stats: stats.kv.host_limit)
    kv_device_bytes = Flat(lambda stats: stats.kv.device_bytes)
    kv_device_budget = Flat(lambda stats: stats.kv.device_budget)
    kv_flash_bytes = Flat(lambda stats: stats.kv.flash_bytes)
    kv_bytes_read = Flat(lambda stats: stats.kv.bytes_read)
    kv_bytes_written = Flat(lambda stats: stats.kv.bytes_written)
    kv_pages_read = Flat(lambda stats: stats.kv.pages_read)
    kv_pages_up = Flat(lambda stats: stats.kv.pages_up)
    kv_bytes_up = Flat(lambda stats: stats.kv.bytes_up)
    kv_stall_seconds = Flat(lambda stats: stats.kv.stall_seconds)
    kv_pages_looked_at = Flat(lambda stats: stats.kv.pages_looked_at)
    kv_pages_passed_over = Flat(lambda stats: stats.kv.pages_passed_over)
    kv_pages_dropped = Flat(lambda stats: stats.kv.pages_dropped)
    kv_dropped_share = Flat(lambda stats: stats.kv.dropped_share)
    kv_exact_layers = Flat(lambda stats: stats.kv.exact_layers)
    kv_unbounded_bytes = Flat(lambda stats: stats.kv.unbounded_bytes)
    kv_unbounded_peak_bytes = Flat(lambda stats: stats.kv.unbounded_peak_bytes)
    kv_unbounded_problem = Flat(lambda stats: stats.kv.unbounded_problem)

    prefix_hits = Flat(lambda stats: stats.prefix.hits)
    prefix_tokens_restored = Flat(lambda stats: stats.prefix.restored)
    prefix_bytes_read = Flat(lambda stats: stats.prefix.bytes_read)
    prefix_bytes_written = Flat(lambda stats: stats.prefix.written)
    prefix_problem = Flat(lambda stats: stats.prefix.problem)

    @property
    def drive_bytes_per_second(self) -> float:
        """Speed of the drive while it was busy, in bytes per second."""
        return self.flash_bytes_read / self.flash_read_seconds if self.flash_read_seconds else 0.0

    def __str__(self) -> str:
        """A few lines for people; ``repr`` has everything."""
        weights, host, device, kv, prefix = self.weights, self.host, self.device, self.kv, self.prefix
        lines = [
            f"{self.tokens} tokens in {self.forwards} forwards",
            f"weights: {weights.hit_ratio:.0%} found in memory, {format_size(weights.flash_bytes_read)} read from "
            f"flash, {weights.stall_seconds:.1f} s waited for",
            f"host memory: {format_size(host.bytes)} of {format_size(host.budget)} in use",
        ]
        if device.budget:
            lines.append(f"device memory: {format_size(device.bytes)} of {format_size(device.budget)} in use")
        if kv.host_budget:
            paged = f"{format_size(kv.host_bytes)} of {format_size(kv.host_budget)} in use"
            lines.append(f"keys and values: {paged}, {format_size(kv.flash_bytes)} on flash")
        elif kv.unbounded_bytes:
            lines.append(f"keys and values: {format_size(kv.unbounded_bytes)}, beside host memory")
        if prefix.prompts:
            lines.append(f"stored prompts: {prefix.restored} tokens of {prefix.prompts} prompts restored")
        return "\n".join(lines)

    def parts(self) -> dict[str, Any]:
        """All statistics, by component, ready for JSON; names of times end in ``_s``."""
        run = {"tokens": self.tokens, "forwards": self.forwards}
        parts = {name: asdict(getattr(self, name)) for name in ("weights", "host", "device", "kv", "prefix")}
        return {"run": run} | {
            part: {_reported(name): value for name, value in values.items()} for part, values in parts.items()
        }

    def report(self) -> dict[str, Any]:
        """All statistics by flat name, ready for JSON; names of times end in ``_s``. Every command reports these."""
        names = ["tokens", "forwards", *(name for name, each in vars(Stats).items() if isinstance(each, Flat))]
        values = {name: getattr(self, name) for name in names}
        values["predictors"] = {name: asdict(record) for name, record in self.predictors.items()}
        return {_reported(name): value for name, value in values.items()}


def _reported(name: str) -> str:
    return f"{name.removesuffix('_seconds')}_s" if name.endswith("_seconds") else name
