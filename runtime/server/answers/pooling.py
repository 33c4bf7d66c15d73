"""How the hidden states of a model are pooled, as its own files say."""

from pathlib import Path
from typing import Any

from ....tiering.errors import CheckpointError
from ...checkpoints.files.json_file import read_object
from ...serving.requests import Pooling

FILE = Path("1_Pooling") / "config.json"
"""Where sentence-transformers says it."""

_MODES: dict[str, Pooling] = {"mean_tokens": "mean", "lasttoken": "last", "cls_token": "first"}
_NAMES: dict[Any, Pooling] = {"mean": "mean", "lasttoken": "last", "cls": "first"}


def find_pooling(folder: Path) -> Pooling:
    """The pooling of the model in ``folder``: "mean" where it does not say. Raises CheckpointError for one that is not
    known here."""
    file = folder / FILE
    if not file.is_file():
        return "mean"
    said = read_object(file)
    modes = [name.removeprefix("pooling_mode_") for name, on in said.items() if name.startswith("pooling_mode_") and on]
    named = said.get("pooling_mode")
    found = [_MODES[mode] for mode in modes if mode in _MODES] + [_NAMES[n] for n in [named] if n in _NAMES]
    if len(found) != 1 or len(modes) + (named is not None) != 1:
        told = ", ".join([*modes, *([str(named)] if named is not None else [])]) or "none"
        raise CheckpointError(f"{file} asks for pooling that is not known here ({told}); choose one with --pooling")
    return found[0]
