"""The file of a trace: tried out before anything is recorded, replaced in one step at the end."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...tiering.driving.small_files import write_durably
from ...tiering.errors import TraceError


def destination(path: str | Path) -> Path:
    """The file that ``path`` names, after links. Its folder, and the file if it is there, are left as they are.

    Raises TraceError if a trace could not be written there.
    """
    with _translated(path):
        found = Path(path).expanduser().resolve()
        if found.exists() and not found.is_file():
            raise TraceError(f"{found} is not a file that a trace could replace; name another one")
        descriptor, aside = tempfile.mkstemp(dir=found.parent, prefix=".penstock-trace-", suffix=".tmp")
        os.close(descriptor)
        os.unlink(aside)
    return found


def write(path: Path, pieces: Iterable[bytes]) -> None:
    """Replace ``path`` by ``pieces``, readable by this user only. Raises TraceError, and leaves ``path`` as it was."""
    with _translated(path):
        write_durably(path, pieces, mode=0o600, alone=False)


@contextmanager
def _translated(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(
            f"a trace cannot be written to {path}: {reason}; name a file in a folder that is there and writable"
        ) from error
