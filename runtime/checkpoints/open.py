"""Open a checkpoint of any kind, the first stage of packing: a folder, a GGUF file or a hub id becomes a ``Source``."""

from pathlib import Path

from .checkpoint import Checkpoint
from .files.gguf_header import find_gguf
from .gguf_source import GgufSource
from .source import Source


def open_source(
    source: str | Path,
    *,
    store: Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quiet: bool = True,
) -> Source:
    """``source``, a folder, a GGUF file, the folder of one, or a hub id. A hub id is fetched first, with the hub's own
    progress bars unless ``quiet``. What a bundle in ``store`` has of a GGUF file is not converted again. Raises
    CheckpointError, as Checkpoint.open, GgufSource.open and find_gguf."""
    file = find_gguf(Path(source).expanduser())
    if file is not None:
        return GgufSource.open(file, store)
    return Checkpoint.open(source, revision=revision, trust_remote_code=trust_remote_code, quiet=quiet)
