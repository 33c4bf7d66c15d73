"""The journal of a bundle that is being written: the drives it is dealt to, and a line per block safely on flash."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...driving.small_files import write_durably
from .manifest import Block, BundleDrive

NAME = "journal.jsonl"
DRIVES = "drives.json"
LENGTHS = "lengths.jsonl"
"""What was found out about lengths before the first block."""


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
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    checksums: list[str] = []
    # The last piece is empty, or a line that a crash cut off.
    for block, entry in zip(plan, raw.split(b"\n")[:-1], strict=False):
        try:
            id_, extent, checksum = json.loads(entry)
        except ValueError:
            break
        expected = [list(block.id), [block.extent.file, block.extent.offset, block.extent.length]]
        if [id_, extent] != expected or not isinstance(checksum, str):
            break
        checksums.append(checksum)
    return checksums


def rewrite(path: Path, blocks: Iterable[Block]) -> None:
    """Make the journal hold exactly ``blocks``."""
    write_durably(path, "".join(map(format_line, blocks)))


def append(path: Path, blocks: Iterable[Block]) -> None:
    """Add ``blocks``, whose data must be durable by now, and make the entries durable."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(map(format_line, blocks)))
        file.flush()
        os.fsync(file.fileno())


def read_drives(folder: Path) -> tuple[BundleDrive, ...]:
    """The drives that the bundle in ``folder`` was begun with; empty if it is plain, or not begun."""
    try:
        found = json.loads((folder / DRIVES).read_bytes())
        return tuple(BundleDrive(str(place), int(speed)) for place, speed in found)
    except (FileNotFoundError, ValueError, TypeError):
        return ()


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
