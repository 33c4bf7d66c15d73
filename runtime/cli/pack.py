"""``penstock pack``: write a checkpoint into the store, in the layout that is streamed from."""

import time
from pathlib import Path

from ...tiering.units import format_size
from ..progress import shown
from .console import print_json, quiet_libraries
from .measure import peak_resident_bytes
from .opening import is_bundle
from .options import Settings, Source


def command(source: Source, settings: Settings) -> None:
    """Pack MODEL into the store; does nothing if it is there already. Interrupted, it resumes where it was."""
    config = settings.load()
    quiet_libraries()
    from ...tiering.store.reader import Bundle
    from ..pack import pack

    start = time.perf_counter()
    with shown() as bar:
        if is_bundle(source.model):
            bundle = Bundle.open(Path(source.model).expanduser(), direct=config.direct)
        else:
            bundle = pack(
                source.model,
                store=config.store.path,
                host_memory=config.host_budget(),
                flash_limit=config.flash_limit,
                codec=config.weights.format,
                stripes=config.store.stripes,
                revision=source.revision,
                trust_remote_code=source.trust_remote_code,
                direct=config.direct,
                progress=bar,
            )
    folder, manifest = bundle.folder, bundle.manifest
    bundle.close()
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
            }
        )
    else:
        print(f"{folder}  {format_size(manifest.total_bytes)} in {len(manifest.blocks)} blocks")
