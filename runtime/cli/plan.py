"""``penstock plan``: will a model fit, what goes where, how fast can it be; nothing is packed."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ...tiering.errors import BudgetTooSmall, BundleError
from ...tiering.policy.cost import Speeds, predict
from ...tiering.policy.placement import Placement
from ...tiering.policy.reads import streamed_lengths, typical_read
from ...tiering.store.folder import size_of
from ...tiering.store.stripes import parts_of
from ...tiering.units import format_size
from ..drives import bundle_speed, together
from ..settings import Io
from ..speeds import drive_speed, existing
from .console import print_json, print_table, quiet_libraries
from .opening import bundles_of, is_bundle, open_checkpoint, read_config, read_manifest
from .options import Settings, Source


def command(
    source: Source,
    settings: Settings,
    prompt_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Length of the prompt for the time to the first token.")
    ] = 512,
) -> None:
    """Say whether MODEL fits, what goes where, and how fast it can be here, from its configuration and this machine.

    That it does not fit is an answer, not an error: the exit code is 0, see "fits" in --json.
    """
    config = settings.load()
    quiet_libraries()
    outline, bundle = _outline(source, config.store.path)
    budget = config.host_budget(outline.total_bytes)
    needed = 0 if bundle else outline.total_bytes
    places = [config.store.path, *config.store.stripes]
    free = flash_free(places, config.flash_limit)
    notes: list[str] = []
    report: dict[str, Any] = {
        "fits": False,
        "tokens_per_second": None,
        "time_to_first_token_s": None,
        "flash_bytes_per_token": None,
        "hit_ratio": None,
        "limited_by": None,
        "minimum_host_memory": outline.least_budget,
        "host_memory": budget,
        "host_memory_floor": None,
        "model_bytes": outline.total_bytes,
        "flash_needed": needed,
        "flash_free": free,
        "prompt_tokens": prompt_tokens,
        "notes": notes,
    }
    if needed > free:
        notes.append(f"packing needs {format_size(needed)} on flash, there is room for {format_size(free)}")
    placement: Placement | None = None
    try:
        placement = outline.place(budget)
    except BudgetTooSmall as error:
        notes.append(str(error))
    else:
        speeds, shares = _measure(outline, placement, bundle, places, config.io)
        if shares:
            free = report["flash_free"] = flash_free(places, config.flash_limit, shares)
        if needed > free and not notes:
            notes.append(f"packing needs {format_size(needed)} on flash, the drives have room for {format_size(free)}")
        report |= {"fits": needed <= free, "host_memory_floor": outline.floor(placement, config.host_floor)}
        report |= _predicted(outline, placement, speeds, prompt_tokens)
        notes += _caveats(outline, placement)
    if settings.json:
        print_json(report)
    else:
        _print(report, placement)


def _outline(source: Source, store: Path) -> tuple[Any, Path | None]:
    """From the manifest of a bundle, the files of a checkpoint, or the configuration alone of one on the hub; and the
    bundle that it is packed into already."""
    import torch

    from ..layout import Layout, layout
    from ..outline import Outline
    from ..skeleton import skeleton
    from ..weights import CheckpointWeights

    path = Path(source.model).expanduser()
    trust = source.trust_remote_code
    if is_bundle(source.model):
        manifest = read_manifest(path)
        config = read_config(str(path / "model"), source)
        model = skeleton(config, getattr(torch, manifest.dtype), trust_remote_code=trust)
        return Outline.of(model, Layout(manifest.blocks, manifest.tied)), path
    if not path.exists():
        config = read_config(source.model, source)
        model = skeleton(config, config.dtype or torch.float32, trust_remote_code=trust)
        return Outline.of(model, layout(model)), None
    checkpoint = open_checkpoint(source)
    model = skeleton(checkpoint.config, checkpoint.dtype(), trust_remote_code=trust)
    weights = CheckpointWeights(model, checkpoint.tensors, layout(model), memory=1 << 62)
    planned = layout(model, weights.addresses())
    weights.close()
    # Only a bundle of the same shape is worth reading the checkpoint for, to see whether it is this one.
    alike = [file.parent for file in store.glob("*/manifest.json") if _same_shape(file.parent, planned)]
    return Outline.of(model, planned), next(iter(bundles_of(checkpoint, store, alike)), None)


def _same_shape(bundle: Path, planned: Any) -> bool:
    try:
        manifest = read_manifest(bundle)
    except BundleError:
        return False
    places = {block.id: place for place, block in enumerate(planned.blocks)}  # experts may lie in another order
    blocks = tuple(sorted(manifest.blocks, key=lambda block: places.get(block.id, -1)))
    return bool(type(planned)(blocks, manifest.tied).digest() == planned.digest())


def _measure(
    outline: Any, placement: Placement, bundle: Path | None, places: Sequence[Path], io: Io
) -> tuple[Speeds, list[float] | None]:
    """The speeds of flash and memory here; without a ``bundle``, also that of each drive to which packing would deal.

    ``places`` are the store and its stripes.
    """
    from ...kernels.machine import measure_memory
    from ..reading import kept_reading

    size = typical_read(streamed_lengths(outline.blocks, placement))
    reading = kept_reading(existing(places[0]), io, block=size)
    if bundle:
        return Speeds(bundle_speed(bundle, read_manifest(bundle), size, reading), measure_memory()), None
    each = [drive_speed(place, size, reading) for place in places]
    return Speeds(together(places, each, each), measure_memory()), each


def _predicted(outline: Any, placement: Placement, speeds: Speeds, prompt_tokens: int) -> dict[str, Any]:
    """What ``placement`` promises at these ``speeds``, as fields of the report."""
    prediction = predict(outline.load(placement), speeds, prompt_tokens=prompt_tokens)
    return {
        "tokens_per_second": prediction.tokens_per_second,
        "time_to_first_token_s": prediction.time_to_first_token_s,
        "flash_bytes_per_token": prediction.flash_bytes_per_token,
        "hit_ratio": prediction.hit_ratio,
        "limited_by": prediction.limited_by,
        "memory_bytes_per_token": prediction.memory_bytes_per_token,
        "flash_bytes_per_second": speeds.flash,
        "memory_bytes_per_second": speeds.memory,
        "placement": {
            "resident_bytes": placement.resident_bytes,
            "pinned_bytes": placement.pinned_bytes,
            "streamed_bytes": placement.streamed_bytes,
            "stream_region_bytes": placement.stream_region_bytes,
            "row_cache_bytes": placement.row_cache_bytes,
            "expert_region_bytes": placement.expert_region_bytes,
            "expert_total_bytes": placement.expert_total_bytes,
            "expert_count": placement.expert_count,
        },
    }


def _caveats(outline: Any, placement: Placement) -> list[str]:
    """What the prediction does not know."""
    notes = []
    if placement.expert_count and placement.expert_share < 1:
        notes.append(
            "the hit ratio is an estimate without a trace of routing: the fraction of the experts that is cached"
        )
    if outline.guessed:
        notes.append("nothing says how many experts a token uses; all of them are counted")
    notes.append("speeds count bytes over measured speeds, not arithmetic: they are upper bounds")
    return notes


def flash_free(places: Sequence[Path], limit: int | None, shares: Sequence[float] | None = None) -> int:
    """Bytes that a new bundle may take in the store, the first of ``places``, and its stripes, the others, which need
    not exist yet; with each taking its share of them, if ``shares`` are given."""
    free: dict[int, int] = {}
    taken: dict[int, float] = {}
    for place, share in zip(places, shares or [1.0] * len(places), strict=True):
        folder = existing(place)
        device = folder.stat().st_dev
        free[device] = shutil.disk_usage(folder).free
        taken[device] = taken.get(device, 0.0) + share
    total = sum(taken.values())
    room = sum(free.values())
    if shares is not None:
        room = min(room, *(int(free[device] * total / taken[device]) for device in free))
    if limit is None:
        return room
    store = places[0]
    elsewhere = [part for stripe in places[1:] for part in parts_of(store, stripe) if not part.is_relative_to(store)]
    return max(0, min(room, limit - size_of(store) - sum(map(size_of, elsewhere))))


def _print(report: dict[str, Any], placement: Placement | None) -> None:
    verdict = "fits" if report["fits"] else "does not fit"
    print(
        f"{format_size(report['model_bytes'])} of weights, {format_size(report['host_memory'])} of host memory: "
        f"{verdict}. The least that would do: {format_size(report['minimum_host_memory'])}."
    )
    if placement is not None:
        print_table("", ["what", "blocks", "bytes", "host memory", "where"], _where(placement))
        print(
            f"At most {report['tokens_per_second']:.2f} tokens/s, limited by {report['limited_by']}; "
            f"{format_size(report['flash_bytes_per_token'])} from flash and "
            f"{format_size(report['memory_bytes_per_token'])} from memory per token, {report['hit_ratio']:.0%} hits.\n"
            f"First token of a prompt of {report['prompt_tokens']} after "
            f"at least {report['time_to_first_token_s']:.2f} s.\n"
            f"Measured: flash {report['flash_bytes_per_second'] / 1e9:.2f} GB/s, "
            f"memory {report['memory_bytes_per_second'] / 1e9:.1f} GB/s.\n"
            f"When the machine runs short of memory, down to {format_size(report['host_memory_floor'])} of host memory."
        )
    for note in report["notes"]:
        print(f"Note: {note}.")


def _where(placement: Placement) -> list[tuple[str, object, str, str, str]]:
    """Rows of the table; what the model does not have is left out."""
    rows = [
        ("small weights", len(placement.resident), placement.resident_bytes, placement.resident_bytes, "memory"),
        ("layers, kept", len(placement.pinned), placement.pinned_bytes, placement.pinned_bytes, "memory"),
        ("layers, streamed", len(placement.streamed), placement.streamed_bytes, placement.stream_region_bytes, "flash"),
        ("embeddings, by row", len(placement.by_row), None, placement.row_cache_bytes, "flash"),
        (
            "experts",
            placement.expert_count,
            placement.expert_total_bytes,
            placement.expert_region_bytes,
            "flash, cached",
        ),
    ]
    return [
        (name, count, "" if total is None else format_size(total), format_size(held), where)
        for name, count, total, held, where in rows
        if count
    ]
