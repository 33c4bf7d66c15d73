"""What bundles keep of a GGUF file besides weights: configuration and tokenizer, as transformers saves and reads them
fast, so that they are converted once.

A note in the bundle says of which content they were made, by which version of transformers, and gives a digest of each
file. Where anything differs, or there is no note, they are converted again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from ....tiering.driving.small_files import read_small, write_durably
from ....tiering.driving.strict_json import Fields, parse_json, text
from ....tiering.store.bundle.folder import bundles_in
from .digest import known_digest

_FILE = "converted.json"
_FORM = 1
"""Changes whenever penstock converts in another way."""
_LARGEST = 1 << 16
"""Most bytes of a note: one of ten files takes a hundredth."""
_LONGEST = 512 << 20
"""Most bytes of a file that it is of: that of the longest vocabulary."""
_SHA256 = "[0-9a-f]{64}"


@dataclass(frozen=True, slots=True)
class _Note:
    """Made of the content ``source`` by ``by``; ``files`` are digests by name."""

    source: str
    by: str
    files: Mapping[str, str]


def find_kept(store: Path, path: Path) -> Path | None:
    """The model folder of a bundle in ``store`` that has configuration and tokenizer of the file at ``path``, as they
    would be converted now; None if there is none, or the file is not known to be as it was: nothing is hashed but small
    files."""
    digest = known_digest([path], store)
    if digest is None:
        return None
    return next((bundle / "model" for bundle in bundles_in(store) if is_kept(bundle, digest)), None)


def is_kept(bundle: Path, source: str) -> bool:
    """Whether the model folder of ``bundle`` is what its note says, and that is of the content ``source``."""
    try:
        note = _read(bundle)
        return (note.source, note.by) == (source, _converter()) and note.files == _digests(bundle / "model")
    except (OSError, ValueError):
        return False


def note_kept(bundle: Path, source: str) -> None:
    """Note that the model folder of ``bundle`` was made of the content ``source`` now, where it may be written."""
    try:
        note = _Note(source, _converter(), _digests(bundle / "model"))
        write_durably(bundle / _FILE, json.dumps(asdict(note)) + "\n", alone=False)
    except OSError:
        return


def _converter() -> str:
    return f"transformers {version('transformers')}, form {_FORM}"


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in ``folder``. Raises OSError, also where one is a link or a folder."""
    files = sorted(folder.iterdir())
    return {path.name: hashlib.sha256(read_small(path, _LONGEST, follow=False)).hexdigest() for path in files}


def _read(bundle: Path) -> _Note:
    """Raises OSError, and ValueError for a note that is none."""
    fields = Fields(parse_json(read_small(bundle / _FILE, _LARGEST, follow=False)))
    source, by, files = fields.text("source", _SHA256), fields.text("by", ".{1,200}"), fields.take("files")
    fields.end()
    if not isinstance(files, dict):
        raise ValueError("files is no object")
    return _Note(source, by, {name: text(value, _SHA256) for name, value in files.items()})
