"""The small files beside the prefixes: what was seen, what is measured, and the index. Any may be lost or damaged."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...driving.small_files import append, read_whole, write_durably
from ...prefix.admission import Seen
from ...prefix.breakeven import Speeds
from ...prefix.breakeven import dump as dump_speeds
from ...prefix.breakeven import parse as parse_speeds
from ...prefix.tree import Record
from ..bundle.manifest import signed

SEEN, SPEEDS, INDEX = "seen", "speeds.json", "index.json"
_PRIVATE = 0o600
_FIELDS = {field.name for field in fields(Record)}


def read_seen(folder: Path, most: int) -> Seen:
    """Hashes of prefixes that came before."""
    try:
        return Seen(read_whole(folder / SEEN), most)
    except OSError:
        return Seen(b"", most)


def note_seen(folder: Path, hashes: Iterable[str], most: int) -> None:
    """Remember ``hashes``. The store's lock is held."""
    seen = read_seen(folder, most)
    path = folder / SEEN
    if seen.crowded:
        write_durably(path, [seen.dump()], mode=_PRIVATE)
    append(path, seen.entries(hashes), mode=_PRIVATE)


def read_speeds(folder: Path) -> dict[str, Speeds]:
    """What was measured, by the root of the model's chains."""
    try:
        return parse_speeds(json.loads(read_whole(folder / SPEEDS)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def write_speeds(folder: Path, speeds: Mapping[str, Speeds]) -> None:
    """Remember ``speeds``. The store's lock is held."""
    write_durably(folder / SPEEDS, json.dumps(dump_speeds(speeds)), mode=_PRIVATE)


def read_index(folder: Path) -> dict[str, Record]:
    """What the headers of the files said, by name; empty where it is lost."""
    try:
        document = json.loads(read_whole(folder / INDEX))
        if document["checksum"] != signed(document)["checksum"]:
            return {}
        return {str(raw["name"]): _record(raw) for raw in document["files"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def write_index(folder: Path, records: Iterable[Record]) -> None:
    """Spare the next start the reading of headers. The store's lock is held."""
    document = signed({"files": [asdict(record) for record in records]})
    write_durably(folder / INDEX, json.dumps(document, separators=(",", ":")), mode=_PRIVATE)


def _record(raw: dict[str, Any]) -> Record:
    if raw.keys() != _FIELDS:
        raise ValueError("other fields")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    return Record(**values)
