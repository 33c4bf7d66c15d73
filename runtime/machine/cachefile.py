"""Small files of what was found out about this machine, in the user's cache folder, to spare later starts the time.

Nothing depends on them: a file that is damaged, or that others may write to, counts as none.
"""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ...tiering.driving.small_files import read_small, write_durably

_LARGEST = 1 << 20


class Strict(BaseModel):
    """A part of such a file: frozen, and nothing but what it declares."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def place(name: str) -> Path:
    """Where the file ``name`` is, or would be."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "penstock" / name


def read(name: str, most: int = _LARGEST) -> bytes | None:
    """The content of the file ``name``, if this user alone may write it, and it has ``most`` bytes at most."""
    try:
        return read_small(place(name), most, follow=False, private=True)
    except OSError:
        return None


def write(name: str, text: str) -> Path | None:
    """Put ``text`` into the file ``name``, whole or not at all; its path, or None where it cannot be written."""
    path = place(name)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, text, mode=0o600, alone=False)
    except OSError:
        return None
    return path
