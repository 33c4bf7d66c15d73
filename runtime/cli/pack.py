"""``penstock pack``: write a checkpoint into the store, in the layout for streaming."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...tiering.errors import TraceError
from ...tiering.store.bundle.manifest import Manifest
from ...tiering.units import format_size
from ..config.config import Config
from ..loading.opening import is_bundle, open_files
from ..loading.progress import shown
from .calibrating import TextCalibrator
from .console import importing, print_json
from .measure import peak_resident_bytes
from .options import Settings, SourceOptions
from .tables import print_table

if TYPE_CHECKING:
    from ...tiering.progress import Progress
    from ...tiering.store.bundle.reader import Bundle
    from ..routing.routes import Routes


def command(
    source: SourceOptions,
    settings: Settings,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="TRACE", help="A routing trace: experts used together lie together, where that saves reads."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A text in UTF-8, for smaller losses: the original, which is packed too, reads some thousand tokens "
            "of it, and what is large in there counts more in int8, int4 and fit:SIZE.",
        ),
    ] = None,
) -> None:
    """Pack MODEL into the store. It does nothing if the bundle is there already, and resumes after an interruption."""
    config = settings.load()
    if profile is not None and is_bundle(source.model):
        raise TraceError("the experts of a bundle stay where they are; name the checkpoint with --profile")
    with importing():
        from ..routing.routes import Routes

    routes = Routes.load(profile) if profile is not None else None
    start = time.perf_counter()
    with shown() as bar:
        bundle = _pack(source, config, routes, text, bar)
    folder, manifest = bundle.folder, bundle.manifest
    bundle.close()
    layers = None if routes is None else _by_layer(routes, manifest)
    if settings.json:
        print_json(
            {
                "bundle": str(folder),
                "identity": manifest.identity,
                "dtype": manifest.dtype,
                "format": manifest.codec,
                "bytes": manifest.total_bytes,
                "blocks": len(manifest.blocks),
                "seconds": time.perf_counter() - start,
                "peak_rss_bytes": peak_resident_bytes(),
                "by_use": layers,
            }
        )
        return
    print(f"{folder}  {format_size(manifest.total_bytes)} in {len(manifest.blocks)} blocks")
    if layers:
        _print(layers)
    elif layers is not None:
        print("each expert is a read of its own, large enough for any drive: their order is that of their numbers")


def _pack(
    source: SourceOptions, config: Config, routes: "Routes | None", text: str | None, bar: "Progress"
) -> "Bundle":
    """Open the bundle ``source``, or pack ``source`` into one, calibrated with the ``text`` if one is given."""
    from ...tiering.store.bundle.reader import Bundle
    from ..loading.exact_choice import rules_of
    from ..loading.openings.device import open_device
    from ..packing.pack import pack
    from ..packing.rules import named_rules

    if is_bundle(source.model) and text is None:
        return Bundle.open(Path(source.model).expanduser(), direct=config.direct)
    opened, rules = open_files(source, config.store.path), rules_of(config, open_device(config))
    # All that settings may choose from change the same weights.
    named = named_rules(config.weights)[0]
    calibrator = None if text is None else TextCalibrator.of(opened, config, named, text, bar)
    assert opened.checkpoint is not None, "a bundle is refused with a text, and opened without one"
    return pack(
        opened.checkpoint,
        store=config.store.path,
        host_memory=config.host_budget(),
        flash_limit=config.flash_limit,
        rules=rules,
        stripes=config.store.stripes,
        aligned=config.aligned,
        routes=routes,
        calibrator=calibrator,
        trust_remote_code=source.trust_remote_code,
        direct=config.direct,
        progress=bar,
    )


def _by_layer(routes: "Routes", manifest: Manifest) -> list[dict[str, Any]]:
    """The reads that the order by use saves in each layer whose experts can be read together."""
    from ..packing.arrange.expert_order import order_experts

    arrangement = order_experts(routes, manifest.blocks)
    return [
        {
            "path": path,
            "by_use": path in arrangement.orders,
            "reads_before": gain.reads_before,
            "reads_after": gain.reads_after,
            "bytes_per_read_before": gain.bytes_per_read_before,
            "bytes_per_read_after": gain.bytes_per_read_after,
        }
        for path, gain in arrangement.gains.items()
    ]


def _print(layers: Sequence[dict[str, Any]]) -> None:
    print_table(
        "A token's reads where a quarter of the experts is cached",
        ["layer", "by number", "by use", "bytes per read", "by use", "chosen"],
        [
            (
                layer["path"],
                f"{layer['reads_before']:.2f}",
                f"{layer['reads_after']:.2f}",
                format_size(round(layer["bytes_per_read_before"])),
                format_size(round(layer["bytes_per_read_after"])),
                "by use" if layer["by_use"] else "by number",
            )
            for layer in layers
        ],
    )
