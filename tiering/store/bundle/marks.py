"""What shows that penstock wrote a folder: what is not shown to be ours is never removed."""

import os
import re
from pathlib import Path

from ....kernels.io.regular import open_regular
from .manifest import DATA

NAME = "manifest.json"
"""The file of a bundle that says what is in it."""
HEAD = re.compile(r'\{\s*"format":\s*"penstock-bundle",\s*"version":\s*([0-9]{1,9})\b')
"""How it begins."""

_LONGEST_HEAD = 256
_NOTES = ("manifest.json", "origin.json", "weights.json", "converted.json", "journal.jsonl", "drives.json",
          "lengths.jsonl")  # fmt: skip
_ASIDE = re.compile(rf"\.({'|'.join(map(re.escape, _NOTES))})\.[0-9a-f]{{32}}\.tmp")
_PACKING = re.compile(r"[\w.-]+-[0-9a-f]{16}(-[0-9a-f]{8})?\.partial")


def is_marked(folder: Path) -> bool:
    """Whether ``folder`` has a manifest that penstock wrote, whatever its version, and whether or not it is whole."""
    try:
        descriptor = open_regular(folder / NAME, os.O_RDONLY, follow=False)
    except OSError:
        return False
    try:
        return HEAD.match(os.read(descriptor, _LONGEST_HEAD).decode(errors="replace")) is not None
    except OSError:
        return False
    finally:
        os.close(descriptor)


def is_damaged(folder: Path) -> bool:
    """Whether ``folder`` looks like a bundle with a manifest that tells nothing: it has data, and nothing of others."""
    return (folder / NAME).is_file() and strange_in(folder) is None and any(map(DATA.fullmatch, os.listdir(folder)))


def is_packing(folder: Path) -> bool:
    """Whether ``folder`` is that of a bundle that was not packed to its end: its name is, and nothing in it is not."""
    return (
        _PACKING.fullmatch(folder.name) is not None
        and folder.is_dir()
        and not folder.is_symlink()
        and strange_in(folder) is None
    )


def strange_in(folder: Path) -> str | None:
    """The name of something in ``folder`` that no bundle has; None if there is nothing. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name == "model":
                own = entry.is_dir(follow_symlinks=False)
            else:
                own = entry.is_file(follow_symlinks=False) and _is_own(entry.name)
            if not own:
                return entry.name
    return None


def _is_own(name: str) -> bool:
    return name in _NOTES or DATA.fullmatch(name) is not None or _ASIDE.fullmatch(name) is not None
