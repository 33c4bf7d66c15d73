"""Small JSON files of a checkpoint: bounded, of the kind that is expected, and without numbers that are none."""

import json
from pathlib import Path
from typing import Any, NoReturn

from ....tiering.errors import CheckpointError
from ....tiering.units import MiB
from .regular import read_whole

SMALL = 16 * MiB
"""Bytes of the longest configuration."""
INDEX_LIMIT = 100_000_000
"""Bytes of the longest index, as of a safetensors header, which has more to say of each tensor."""
_DEEPEST = 64


def read_object(path: Path, longest: int = SMALL) -> dict[str, Any]:
    """The JSON object in the file at ``path``. Raises CheckpointError."""
    raw = read_whole(path, longest)
    try:
        found = json.loads(raw, parse_constant=_constant)
        if not isinstance(found, dict):
            raise ValueError(f"it is a JSON {_kind(found)}, not an object")
        if _is_deep(found):
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
    except RecursionError as error:
        raise _unusable(path, f"it is nested more than {_DEEPEST} deep") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are among them
        raise _unusable(path, str(error)) from error
    return found


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of ``pairs``, as ``object_pairs_hook``. Raises ValueError for a name that occurs twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _constant(name: str) -> float:
    if name == "NaN":
        _refuse_nan()
    return float(name.replace("Infinity", "inf"))  # as configurations of Mamba have for a limit that is none


def _refuse_nan() -> NoReturn:
    raise ValueError("a value is NaN")


def _is_deep(value: Any) -> bool:
    """Whether there are more levels than any configuration has."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            each
            for outer in level
            for each in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(each, dict | list)
        ]
        if not level:
            return False
    return True


def _kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "constant", type(None): "constant"}
    return names.get(type(value), "number")


def _unusable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be used: {why}; fetch the checkpoint again")
