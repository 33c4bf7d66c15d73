"""The journal of a bundle that is being written: one line per block that is safely on flash."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .folder import write_durably
from .manifest import Block

NAME = "journal.jsonl"


def line(block: Block) -> str:
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
    write_durably(path, "".join(map(line, blocks)))


def append(path: Path, blocks: Iterable[Block]) -> None:
    """Add ``blocks``, whose data must be durable by now, and make the entries durable."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(map(line, blocks)))
        file.flush()
        os.fsync(file.fileno())
