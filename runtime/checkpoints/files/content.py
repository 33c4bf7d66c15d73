"""The files that decide what a model computes: those of a checkpoint's folder, or a GGUF file. Only the configuration
and an index are opened to find them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ....tiering.errors import CheckpointError
from ....tiering.progress import Progress
from .digest import digest_files
from .gguf_header import find_gguf
from .json_file import read_object
from .model_files import what_decides_weights
from .weights_files import check_link, find_weights

_CONFIG = "config.json"


@dataclass(frozen=True)
class Content:
    """``files`` are those of the weights; ``folder`` has a configuration, and code if that is trusted; None for a file
    that has all."""

    files: tuple[Path, ...]
    folder: Path | None = None
    trust_remote_code: bool = False

    @property
    def content(self) -> tuple[Path, ...]:
        """Every file that decides what the model computes."""
        if self.folder is None:
            return self.files
        code = sorted(self.folder.glob("*.py")) if self.trust_remote_code else []
        return (*self.files, self.folder / _CONFIG, *code)

    def weights_digest(self, store: Path, progress: Progress | None = None) -> str | None:
        """SHA-256 of what decides the weights alone; None where that is all of the content. Of the configuration counts
        what may decide weights."""
        if self.folder is None:
            return None
        config = what_decides_weights(read_object(self.folder / _CONFIG))
        files = digest_files([file for file in self.content if file.name != _CONFIG], store, progress)
        return hashlib.sha256(json.dumps([files, config], sort_keys=True).encode()).hexdigest()


def find_content(path: Path, *, trust_remote_code: bool) -> Content:
    """The content of the folder or GGUF file at ``path``. Raises CheckpointError where it is neither."""
    file = find_gguf(path)
    if file is not None:
        return Content((file,))
    raw = read_raw_config(path)
    return Content(find_weights(path, raw.get("transformers_weights")), path, trust_remote_code)


def read_raw_config(folder: Path) -> dict[str, object]:
    """The configuration in ``folder``, as it is written. Raises CheckpointError."""
    path = folder / _CONFIG
    check_link(path)
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {_CONFIG}")
    return read_object(path)
