"""Small files of what was found out about this machine, below the user's cache folder, to spare later starts the time.

Nothing depends on them: one that is damaged, or that others may write to, counts as none.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_LARGEST = 1 << 20


def place(name: str) -> Path:
    """Where the file ``name`` is, or would be."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "penstock" / name


def read(name: str) -> bytes | None:
    """What is in the file ``name``, if it is this user's alone to write, and small."""
    try:
        descriptor = os.open(place(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            foreign = status.st_uid != os.geteuid() or status.st_mode & 0o022 or not stat.S_ISREG(status.st_mode)
            return None if foreign or status.st_size > _LARGEST else file.read()
    except OSError:
        return None


def write(name: str, text: str) -> Path | None:
    """Put ``text`` into the file ``name``, whole or not at all; where it is, None if that cannot be."""
    path, aside = place(name), ""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=f".{name}-", dir=path.parent)  # readable for its owner only
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        if aside:
            with suppress(OSError):
                os.unlink(aside)
        return None
    return path
