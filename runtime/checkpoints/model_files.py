"""The bundle's ``model`` folder: configuration and tokenizer, as they were in the checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ...tiering.driving.small_files import sync_folder
from ...tiering.errors import CheckpointError

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
)


def write_model_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Make the folder of configuration and tokenizer, anew if an interrupted packing has left one."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write(folder)
        sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error


def copy_model_files(source: Path, folder: Path, untied: bool) -> None:
    """Copy configuration and tokenizer. The configuration does not say how weights are quantised, for the bundle does;
    it says if the weights turned out not to be tied."""
    for path in sorted({path for pattern in FILES for path in source.glob(pattern)}):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    quantised = config.pop("quantization_config", None) is not None
    if untied:
        for part in (config, config.get("text_config")):
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False
    if untied or quantised:
        path.write_text(json.dumps(config, indent=2) + "\n")
