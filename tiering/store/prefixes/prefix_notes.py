"""The small files beside the prefixes: what was seen, what is measured, and the index. Any may be lost or damaged."""

import json
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from ...driving.small_files import append, read_small, write_durably
from ...driving.strict_json import LARGEST, Fields, parse_json, text, whole
from ...prefix.admission import Seen
from ...prefix.breakeven import Speeds
from ...prefix.breakeven import dump as dump_speeds
from ...prefix.breakeven import parse as parse_speeds
from ...prefix.header import HASH, LABEL, MOST_TOKENS
from ...prefix.tree import Record
from ..bundle.manifest import signed

SEEN, SPEEDS, INDEX = "seen", "speeds.json", "index.json"
_PRIVATE = 0o600
_MOST_SEEN = 8 << 20
"""Bytes of hashes: what a store of any quota remembers, twice, and one very long prompt."""
_MOST_SPEEDS = 1 << 20
"""Bytes of speeds: those of 64 models take a thirtieth."""
_MOST_INDEX = 16 << 20
"""Bytes of an index: 150,000 blocks. Beyond that headers are read one by one."""
_NAME = r"[^\0-\x1f\x7f/]{1,251}\.kv"


def read_seen(folder: Path, most: int) -> Seen:
    """Hashes of prefixes that came before."""
    try:
        return Seen(read_small(folder / SEEN, _MOST_SEEN, follow=False), most)
    except OSError:
        return Seen(b"", most)


def note_seen(folder: Path, hashes: Iterable[str], most: int) -> None:
    """Remember ``hashes``. The store's lock is held."""
    path = folder / SEEN
    try:
        seen = Seen(read_small(path, _MOST_SEEN, follow=False), most)
        torn = seen.crowded
    except OSError as error:
        seen, torn = Seen(b"", most), not isinstance(error, FileNotFoundError)
    if torn:  # too long, cut off, or no file of ours
        write_durably(path, [seen.dump()], mode=_PRIVATE)
    append(path, seen.entries(hashes), mode=_PRIVATE)


def sweep(folder: Path) -> None:
    """Remove what is none of these files, or too long to be read: it takes room, and would be there for ever. The
    store's lock is held."""
    for name, most in ((SEEN, _MOST_SEEN), (SPEEDS, _MOST_SPEEDS), (INDEX, _MOST_INDEX)):
        with suppress(FileNotFoundError):
            status = (folder / name).lstat()
            is_file = stat.S_ISREG(status.st_mode) and status.st_size <= most
            if not is_file and not stat.S_ISDIR(status.st_mode):
                (folder / name).unlink()


def read_speeds(folder: Path) -> dict[str, Speeds]:
    """What was measured, by the root of the model's chains."""
    try:
        return parse_speeds(parse_json(read_small(folder / SPEEDS, _MOST_SPEEDS, follow=False)))
    except (OSError, ValueError):
        return {}


def write_speeds(folder: Path, speeds: Mapping[str, Speeds]) -> None:
    """Remember ``speeds``. The store's lock is held."""
    write_durably(folder / SPEEDS, json.dumps(dump_speeds(speeds)), mode=_PRIVATE)


def read_index(folder: Path) -> dict[str, Record]:
    """What the headers of the files said, by name; empty where it is lost."""
    try:
        document = parse_json(read_small(folder / INDEX, _MOST_INDEX, follow=False))
        fields = Fields(document)
        if fields.take("checksum") != signed(document)["checksum"]:
            return {}
        records = fields.many("files", _record)
        fields.end()
        return {record.name: record for record in records}
    except (OSError, ValueError, RecursionError):
        return {}


def write_index(folder: Path, records: Iterable[Record]) -> None:
    """Spare the next start the reading of headers. The store's lock is held."""
    document = signed({"files": [asdict(record) for record in records]})
    write_durably(folder / INDEX, json.dumps(document, separators=(",", ":")), mode=_PRIVATE)


def _record(raw: object) -> Record:
    """Raises ValueError."""
    fields = Fields(raw)
    state = fields.take("state")
    record = Record(
        name=fields.text("name", _NAME),
        label=fields.text("label", LABEL),
        root=fields.text("root", HASH),
        parent=fields.text("parent", HASH),
        first=fields.whole("first", 0, MOST_TOKENS),
        block=fields.whole("block", 1, MOST_TOKENS),
        hashes=fields.many("hashes", lambda hash_: text(hash_, HASH)),
        ends=fields.many("ends", whole),
        state=None if state is None else text(state, HASH),
        end=fields.whole("end"),
        explicit=fields.flag("explicit"),
        length=fields.whole("length"),
        used=fields.whole("used", -LARGEST),
    )
    fields.end()
    ends = [1, *record.ends, record.end]
    if len(record.hashes) != len(record.ends) or any(one > other for one, other in pairwise(ends)):
        raise ValueError("its blocks do not follow each other")
    return record
