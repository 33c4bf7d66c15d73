"""The bundle's ``model`` folder: the small files of the checkpoint that a model is built and used with.

They are configuration, tokenizer, templates, processors and, where the user trusts it, code. The bundle never decides
what is in them while the checkpoint is there: a file that has changed is replaced, whole, by a rename.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ....kernels.io.regular import open_regular
from ....tiering.driving.small_files import make_folder, sync_folder, write_durably
from ....tiering.errors import CheckpointError
from .json_file import read_object

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*processor_config.json",
    "*.model",
    "*.tiktoken",
)
_CODE = "*.py"

_NOT_OF_WEIGHTS = {
    "_name_or_path",
    "transformers_version",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "max_length",
    "do_sample",
    "temperature",
    "top_p",
    "repetition_penalty",
}
"""Keys of a configuration that decide which tokens are generated, and nothing about weights."""

_PIECE = 1 << 20

ModelFiles = Mapping[str, Path | str]
"""The files of the folder, by name: where each lies, or what is in it."""


def write_model_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Make the folder with what ``write`` writes, anew if an interrupted packing left one. Raises CheckpointError."""
    try:
        if folder.is_symlink():  # what lies there is not ours
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        write(folder)
        sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error


def put_files(folder: Path, files: ModelFiles) -> None:
    """Write ``files`` into the folder. Raises OSError."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _put(content, folder / name)


def refresh_model_folder(folder: Path, files: ModelFiles) -> bool:
    """Make ``files`` those of the folder, where they differ. Who reads meanwhile finds each file as it was or as it is.

    Code stays, if ``files`` have none: whoever trusts it may use the bundle, too. Returns whether the folder has them:
    not where it may not be written, and not through a link.
    """
    if folder.is_symlink() or folder.parent.is_symlink():
        return False
    try:
        stale = [path for path in _known_files(folder) if str(path.relative_to(folder)) not in files]
        changed = {name: content for name, content in files.items() if not _has(folder / name, content)}
        for name, content in changed.items():
            if (folder / name).parent != folder:
                make_folder((folder / name).parent)
            write_durably(folder / name, _pieces(content), alone=False)
        for path in stale:
            path.unlink(missing_ok=True)
        if changed or stale:
            sync_folder(folder)
    except OSError:
        return False
    return True


def checkpoint_files(source: Path, untied: bool, *, code: bool) -> dict[str, Path | str]:
    """The files of the checkpoint ``source``; with ``code``, Python files too. The configuration does not say how
    weights are quantised, for the bundle does; it says if the weights turned out not to be tied."""
    patterns = (*FILES, _CODE) if code else FILES
    found: dict[str, Path | str] = {
        str(path.relative_to(source)): path for pattern in patterns for path in sorted(source.glob(pattern))
    }
    found = {name: path for name, path in sorted(found.items()) if isinstance(path, Path) and path.is_file()}
    config = read_object(source / "config.json")
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    quantised = [part.pop("quantization_config", None) for part in parts] != [None] * len(parts)
    if untied:
        for part in parts:
            part["tie_word_embeddings"] = False
    if untied or quantised:
        found["config.json"] = json.dumps(config, indent=2) + "\n"
    return found


def what_decides_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` without what is known to have nothing to do with weights, in its parts too."""
    return {
        key: what_decides_weights(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _NOT_OF_WEIGHTS
    }


def saved_files(save: Callable[[Path], None]) -> dict[str, Path | str]:
    """What ``save`` writes into an empty folder."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        save(Path(folder))
        return {path.name: path.read_text() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def _known_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})


def _put(content: Path | str, path: Path) -> None:
    """Write a file, durably."""
    write_durably(path, _pieces(content))


def _pieces(content: Path | str) -> Iterator[bytes]:
    """The bytes of ``content``, a few at a time: tokenizers have tens of megabytes."""
    if isinstance(content, str):
        yield content.encode()
        return
    with open(open_regular(content, os.O_RDONLY), "rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _has(path: Path, content: Path | str) -> bool:
    if not path.is_file():
        return False
    return path.read_bytes() == (content.read_bytes() if isinstance(content, Path) else content.encode())
