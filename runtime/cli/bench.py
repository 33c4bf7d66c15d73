"""``penstock bench``: a quick honest measurement of one model on this machine."""

import statistics
import time
from contextlib import closing, nullcontext
from typing import Annotated, Any

import typer

from ...tiering.policy.drive_reading import streamed_lengths, typical_read
from ...tiering.policy.placement.placement import SizedBlock
from ...tiering.store.bundle.manifest_file import read_manifest
from ...tiering.units import format_size
from ..loading.opening import open_files
from ..loading.progress import shown
from ..machine.drives import bundle_speed
from ..tracing.tracefile import destination
from .console import importing, print_json
from .generate import room_for
from .measure import peak_resident_bytes
from .options import Settings, SourceOptions, TraceFile
from .tables import print_table

PREFILL = 64
"""Tokens of the prompt, at most."""


def command(
    source: SourceOptions,
    settings: Settings,
    steps: Annotated[int, typer.Option("-n", "--tokens", metavar="N", min=1, help="Tokens decoded one by one.")] = 32,
    trace: TraceFile = None,
) -> None:
    """Measure MODEL with fixed random tokens: a prompt at once, then tokens one by one. The drive is measured in the
    same run."""
    config = settings.load()
    if trace is not None:
        destination(trace)  # what cannot be written is said before anything is packed
    with importing():
        from ..loading.load import load_opened

    with shown() as bar:
        opened = open_files(source, config.store.path)
        positions = opened.positions
        prefill = min(PREFILL, max(1, (positions or PREFILL) // 2))
        room_for(prefill, steps + 1, positions)
        start = time.perf_counter()
        model = load_opened(opened, config, bar)
        load_s = time.perf_counter() - start
    with closing(model.penstock):
        report = {"load_s": load_s} | _measure(model, prefill, steps, trace)
    if settings.json:
        print_json(report)
    else:
        print_table("", ["", ""], _rows(report))


def _measure(model: Any, prefill: int, steps: int, trace: str | None) -> dict[str, Any]:
    import torch

    handle = model.penstock
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, prefill + steps), generator=torch.Generator().manual_seed(0)).to(model.device)
    size = typical_read(streamed_blocks(handle))
    manifest = read_manifest(handle.bundle)
    drive = [bundle_speed(handle.bundle, manifest, size, handle.reading)]
    with torch.inference_mode(), nullcontext() if trace is None else handle.trace(trace):
        start = time.perf_counter()
        out = model(ids[:, :prefill], use_cache=True)
        handle.synchronize()
        prefill_s = time.perf_counter() - start
        before, times = handle.stats(), []
        for step in range(prefill, prefill + steps):
            start = time.perf_counter()
            out = model(ids[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
            handle.synchronize()
            times.append(time.perf_counter() - start)
    after = handle.stats()
    drive.append(bundle_speed(handle.bundle, manifest, size, handle.reading))
    return summarise(before.report(), after.report(), times, statistics.mean(drive)) | {
        "prefill_tokens": prefill,
        "prefill_s": prefill_s,
        "read_size": size,
        "host_bytes": after.host_bytes,
        "host_budget": after.host_budget,
        "host_limit": after.host_limit,
        "host_shrinks": after.host_shrinks,
        "peak_rss_bytes": peak_resident_bytes(),
    }


def streamed_blocks(handle: Any) -> list[int]:
    """Bytes of each block that is read while the model runs."""
    blocks = read_manifest(handle.bundle).blocks
    return streamed_lengths([SizedBlock(b.id, b.extent.length, b.resident) for b in blocks], handle.placement)


def summarise(
    before: dict[str, Any], after: dict[str, Any], times: list[float], drive_bytes_per_second: float
) -> dict[str, Any]:
    """Summarise decoding between two snapshots of the counters, where each step took one of ``times``, in seconds.
    Pure."""
    counted = {name: after[name] - before[name] for name in after if isinstance(after[name], (int, float))}
    total = sum(times)
    hits, misses = counted["expert_hits"], counted["expert_misses"]
    if not hits + misses:
        hits, misses = counted["dense_hits"], counted["dense_misses"]
    per_second = counted["flash_bytes_read"] / total
    return {
        "tokens": len(times),
        "tokens_per_second": 1 / statistics.median(times),
        "tokens_per_second_mean": len(times) / total,
        "flash_bytes_per_token": counted["flash_bytes_read"] / len(times),
        "hit_ratio": hits / (hits + misses) if hits + misses else 1.0,
        "stall_share": counted["stall_s"] / total,
        "flash_bytes_per_second": per_second,
        "drive_bytes_per_second": drive_bytes_per_second,
        "drive_fraction": per_second / drive_bytes_per_second,
    }


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("decoding, median", f"{report['tokens_per_second']:.2f} tokens/s"),
        ("decoding, mean", f"{report['tokens_per_second_mean']:.2f} tokens/s"),
        (f"prompt of {report['prefill_tokens']} tokens", f"{report['prefill_s']:.2f} s"),
        ("read from flash per token", format_size(round(report["flash_bytes_per_token"]))),
        ("found in memory", f"{report['hit_ratio']:.1%}"),
        ("waiting for the drive", f"{report['stall_share']:.1%} of the time"),
        ("read from flash", f"{report['flash_bytes_per_second'] / 1e9:.2f} GB/s"),
        (
            f"the drive, {format_size(report['read_size'])} reads",
            f"{report['drive_bytes_per_second'] / 1e9:.2f} GB/s",
        ),
        ("fraction of the drive's limit", f"{report['drive_fraction']:.1%}"),
        ("host memory", f"{format_size(report['host_bytes'])} of {format_size(report['host_budget'])}"),
        ("peak resident set", format_size(report["peak_rss_bytes"])),
    ]
