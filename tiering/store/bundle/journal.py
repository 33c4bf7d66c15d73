"""The journal of a bundle that is being written: the drives it is dealt to, and a line per block safely on flash."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...driving import small_files
from ...driving.small_files import read_small, write_durably
from ...driving.strict_json import items, many, parse_json, text, whole
from .manifest import Block, BundleDrive

NAME = "journal.jsonl"
DRIVES = "drives.json"
LENGTHS = "lengths.jsonl"
"""What was found out about lengths before the first block."""
_LINE = 1 << 16
"""Most bytes of a block's line: its name has at most a few hundred."""
_MOST_DRIVES = 1 << 20
"""Most bytes of what is remembered of drives."""


def format_line(block: Block) -> str:
    """The journal's line for ``block``, as JSON: id, extent, checksum."""
    extent = block.extent
    fields = [list(block.id), [extent.file, extent.offset, extent.length], block.checksum]
    return json.dumps(fields, separators=(",", ":")) + "\n"


def read(path: Path, plan: Sequence[Block]) -> list[str]:
    """Checksums of the blocks at the head of ``plan`` that the journal has.

    Stops at the first line that is torn or does not belong to the plan: what lies behind it is written anew.
    """
    try:
        raw = read_small(path, _LINE * max(1, len(plan)), follow=False)
    except OSError:  # none, or nothing that a writer of ours has made: it is replaced
        return []
    checksums: list[str] = []
    # The last piece is empty, or a line that a crash cut off.
    for block, entry in zip(plan, raw.split(b"\n")[:-1], strict=False):
        try:
            checksums.append(_checksum(parse_json(entry), block))
        except ValueError:
            break
    return checksums


def _checksum(line: Any, block: Block) -> str:
    """What ``line`` says the checksum of ``block`` is. Raises ValueError for a line that is not that block's."""
    id_, extent, checksum = items(line, 3)
    found = [*items(id_, 3), *items(extent, 3)]
    expected = [*block.id, block.extent.file, block.extent.offset, block.extent.length]
    if [(type(each), each) for each in found] != [(type(each), each) for each in expected]:
        raise ValueError("the line of another block")
    return text(checksum, "[0-9a-f]{16}")


def rewrite(path: Path, blocks: Iterable[Block]) -> None:
    """Make the journal hold exactly ``blocks``."""
    write_durably(path, "".join(map(format_line, blocks)))


def append(path: Path, blocks: Iterable[Block]) -> None:
    """Add ``blocks``, whose data must be durable by now, and make the entries durable."""
    small_files.append(path, "".join(map(format_line, blocks)).encode(), durable=True)


def read_drives(folder: Path) -> tuple[BundleDrive, ...]:
    """The drives that the bundle in ``folder`` was begun with; empty if it is plain, or not begun."""
    try:
        return many(parse_json(read_small(folder / DRIVES, _MOST_DRIVES, follow=False)), _drive)
    except (OSError, ValueError):
        return ()


def _drive(raw: Any) -> BundleDrive:
    place, speed = items(raw, 2)
    # The first has no folder: its blocks lie in the bundle's own.
    return BundleDrive(text(place, r"|/[^\0]*"), whole(speed, 1))


def begin(folder: Path, drives: Sequence[BundleDrive]) -> None:
    """Remember ``drives``: measured again they would have other speeds, and blocks would be dealt another way."""
    if drives:
        write_durably(folder / DRIVES, json.dumps([[drive.folder, drive.bytes_per_second] for drive in drives]))
    else:
        (folder / DRIVES).unlink(missing_ok=True)


def end(folder: Path) -> None:
    """Remove the journal of a bundle that is whole."""
    for name in (NAME, DRIVES, LENGTHS):
        (folder / name).unlink(missing_ok=True)
