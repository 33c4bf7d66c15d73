"""The configuration's file: where it is looked for, how its TOML is read and written."""

import json
import textwrap
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...tiering.driving.small_files import read_small
from ...tiering.errors import ConfigError
from ...tiering.units import GiB, KiB, MiB

SIZES = ("memory", "kv")
"""Sections whose whole numbers are bytes."""
_LARGEST = 32 * KiB
"""Most bytes of the file: five times all keys with their comments. Python's reader may take time with the square."""


def usual_file() -> Path | None:
    """./penstock.toml, else ~/.config/penstock/penstock.toml, else None."""
    candidates = (Path("penstock.toml"), Path("~/.config/penstock/penstock.toml").expanduser())
    return next((file for file in candidates if file.is_file()), None)


def read(file: Path) -> dict[str, Any]:
    """The file's sections as written, but for the store's folders: relative ones are relative to the file.

    Raises ConfigError when it is absent, unreadable or no TOML.
    """
    try:
        raw = tomllib.loads(read_small(file, _LARGEST).decode("utf-8"))
        _check_numbers(raw)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not a TOML file: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{file} is not a TOML file: it is nested too deep") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read the configuration {file}: {reason}") from error
    store = raw.get("store")
    if isinstance(store, dict):
        for key, value in store.items():
            if key == "path":
                store[key] = _beside(file, value)
            elif key == "stripes" and isinstance(value, list):
                store[key] = [_beside(file, folder) for folder in value]
    return raw


def _check_numbers(value: object) -> None:
    """Raise ValueError for a whole number that TOML does not have. Python's reader takes any, and cannot show some."""
    if isinstance(value, int) and value.bit_length() > 64:
        raise ValueError(f"it has a number of {value.bit_length()} bits")
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            _check_numbers(each)


def _beside(file: Path, folder: object) -> object:
    """``folder`` as written in ``file``, made absolute if it is a relative path."""
    if isinstance(folder, str) and folder.strip() and not folder.startswith("~"):
        return str(file.absolute().parent / folder)
    return folder


def write(sections: Iterable[tuple[str, Iterable[tuple[str, str, object]]]]) -> str:
    """A commented file of ``(section, [(key, comment, value)])``; values: bytes in [memory] and [kv], numbers, text,
    lists."""
    lines = ["# penstock configuration. Every key is optional. These are the values in effect."]
    for section, keys in sections:
        lines += ["", f"[{section}]"]
        for key, comment, value in keys:
            lines += textwrap.wrap(comment, 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
            lines.append(f"{key} = {_value(value, is_size=section in SIZES)}")
    return "\n".join(lines) + "\n"


def _value(value: object, *, is_size: bool) -> str:
    if isinstance(value, int):
        if is_size and value:
            for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
                if value % unit == 0:
                    return f'"{value // unit}{name}"'
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(each, is_size=False) for each in value)}]"
    # JSON quotes as TOML does, but for DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
