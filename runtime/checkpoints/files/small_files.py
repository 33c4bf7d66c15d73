"""The small files of a checkpoint's folder, looked at before transformers reads them."""

from pathlib import Path

from ....tiering.errors import CheckpointError
from ....tiering.units import MiB
from .bounds import Bounds, absurd
from .json_file import SMALL, read_object

_OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
)
_LONG = ("tokenizer.json", "vocab.json")
_LONGEST_VOCABULARY = 512 * MiB
_OTHERS = ("merges.txt", "chat_template.jinja", "*.model", "*.tiktoken", "additional_chat_templates/*.jinja")


def check_small_files(folder: Path, bounds: Bounds) -> None:
    """Raise CheckpointError for a file of ``folder`` that is no JSON object and should be one, for one that is larger
    than any of its kind, and for a configuration that asks for more than ``bounds``. A file may be absent."""
    for name in _OBJECTS:
        path = folder / name
        if path.is_file():
            found = read_object(path)
            if name == "config.json" and (what := absurd(found, bounds)) is not None:
                raise CheckpointError(f"{path} cannot be used: {what}; fetch the checkpoint again")
    for pattern in (*_LONG, *_OTHERS):
        most = _LONGEST_VOCABULARY if pattern in _LONG else SMALL * 4
        for path in folder.glob(pattern):
            if path.is_file() and path.stat().st_size > most:
                raise CheckpointError(f"{path} is longer than {most} bytes, as no such file is; fetch it again")
