"""What a run can say about itself: a frozen snapshot, in bytes, seconds and counts since the model was loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...tiering.policy.prefetch.predictors import Record


@dataclass(frozen=True, slots=True)
class Stats:
    """``hit_ratio`` is the share of requested experts that were in memory (on the device, or the host's); for a model
    without experts, the share of requests for streamed layers that were. ``stall_seconds`` is the time in which a
    compute thread waited for a block. Of the bytes read, ``demand_bytes`` were waited for, ``prefetch_bytes`` were
    certain to be wanted, ``guess_bytes``
    were guessed, of which ``guess_bytes_used`` were then asked for, and ``refine_bytes`` are of residuals, read while a
    drive had nothing else to do; ``refine_failures`` of these could not be read. ``products_by_planes`` says how often
    experts were computed with how many planes of their weights, one in most formats: all requests for experts, in all.
    With a device, ``misses_computed`` of ``expert_misses`` were computed by the CPU, the others were copied up.
    ``eviction`` is the policy that decides now which
    expert goes, ``predictor`` is who guesses, ``predictors`` what trials have shown of each. ``drive_bytes`` are those
    of ``flash_bytes_read`` that came from each drive of the bundle, its own first. ``flash_read_seconds`` is the time
    in which at least one read was in flight. ``host_limit`` is what memory pressure leaves of ``host_budget`` now,
    never less than ``host_floor``; it was lowered ``host_shrinks`` times and raised ``host_growths`` times.
    ``host_bytes`` is what the arenas may hold now, ``resident_bytes`` what they do hold; the memory for KV in pages is
    a part of these five.

    With a device tier, hits and misses are those of requests to the device: a miss may still be found in host memory.
    ``device_bytes`` of ``device_budget`` are the device's arena, from which ``device_evictions`` blocks went;
    ``bytes_copied`` went up to it, in ``copy_seconds`` in which a copy was under way.

    Of KV in pages, ``kv_host_bytes`` of ``kv_host_budget`` are in use in memory and ``kv_flash_bytes`` on flash;
    memory pressure leaves ``kv_host_limit`` of the budget now. Copies of the newest pages take ``kv_device_bytes`` of
    ``kv_device_budget`` on the device, where ``kv_pages_up`` were copied to stay; ``kv_bytes_up`` are those of all
    copies there, also of what only passes. ``kv_pages_read`` of ``kv_bytes_read`` were read back, ``kv_bytes_written``
    were written, all of them apart from the bytes of weights above, and compute threads waited ``kv_stall_seconds`` for
    pages or for room. 0 for a model whose KV transformers keeps. Where [kv] attention chooses among pages, single
    tokens looked at ``kv_pages_looked_at`` and not at ``kv_pages_passed_over``; ``kv_pages_dropped`` are gone for good,
    which had ``kv_dropped_share`` of the attention that was counted until then (0 where none is counted).
    ``kv_exact_layers`` look at all pages all the same, for "certified" and "quest" cannot choose among latents.

    Caches that transformers keeps take ``kv_unbounded_bytes`` beside ``host_budget`` now, and took at most
    ``kv_unbounded_peak_bytes`` after a forward: all KV that is not in pages, and states of one size. Caches count that
    the model has computed with and that are alive. ``kv_unbounded_problem`` is what was warned of when they and the
    weights in memory passed ``host_budget``.

    Of kept prompts, ``prefix_hits`` were found, so that ``prefix_tokens_restored`` tokens were read instead of
    computed; ``prefix_problem`` is what went wrong with them last: then prompts are computed, or not kept."""

    tokens: int
    forwards: int
    flash_bytes_read: int
    flash_read_seconds: float
    demand_bytes: int
    prefetch_bytes: int
    guess_bytes: int
    guess_bytes_used: int
    refine_bytes: int
    refine_failures: int
    products_by_planes: Mapping[int, int]
    eviction: str
    predictor: str
    predictors: Mapping[str, Record]
    row_bytes: int
    drive_bytes: tuple[int, ...]
    reads: int
    expert_hits: int
    expert_misses: int
    dense_hits: int
    dense_misses: int
    evictions: int
    hit_ratio: float
    stall_seconds: float
    resident_bytes: int
    host_bytes: int
    host_budget: int
    host_limit: int
    host_floor: int
    host_shrinks: int
    host_growths: int
    kv_host_bytes: int
    kv_host_budget: int
    kv_host_limit: int
    kv_device_bytes: int
    kv_device_budget: int
    kv_flash_bytes: int
    kv_bytes_read: int
    kv_bytes_written: int
    kv_pages_read: int
    kv_pages_up: int
    kv_bytes_up: int
    kv_stall_seconds: float
    kv_pages_looked_at: int
    kv_pages_passed_over: int
    kv_pages_dropped: int
    kv_dropped_share: float
    kv_exact_layers: int
    kv_unbounded_bytes: int
    kv_unbounded_peak_bytes: int
    kv_unbounded_problem: str
    misses_computed: int = 0
    device_bytes: int = 0
    device_budget: int = 0
    device_evictions: int = 0
    bytes_copied: int = 0
    copy_seconds: float = 0.0
    prefix_hits: int = 0
    prefix_tokens_restored: int = 0
    prefix_bytes_read: int = 0
    prefix_bytes_written: int = 0
    prefix_problem: str = ""

    @property
    def drive_bytes_per_second(self) -> float:
        """Speed of the drive while it was busy."""
        return self.flash_bytes_read / self.flash_read_seconds if self.flash_read_seconds else 0.0
