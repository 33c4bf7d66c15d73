"""What is deleted while it is used: one error that says so, whatever was looked for when it was missed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import BundleError, PenstockError


@contextmanager
def told_when_gone(folder: Path) -> Iterator[None]:
    """Raise BundleError for any error in the block that comes of ``folder``, or of a file in it, being deleted."""
    try:
        yield
    except (OSError, PenstockError) as error:
        if folder.exists() and not _missed_in(folder, error):
            raise
        raise BundleError(f"{folder} was deleted, or files in it, while it was used; run the same again") from error


def _missed_in(folder: Path, error: Exception) -> bool:
    """Whether ``error`` is that a file in ``folder`` is not there, or a folder no longer takes one."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return False
    names = (error.filename, error.filename2)
    return any(isinstance(name, str | Path) and Path(name).is_relative_to(folder) for name in names)
