"""Open a file of a checkpoint: only a regular one, so that no pipe or device is waited for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from ....kernels.io.regular import open_regular, read_regular
from ....kernels.io.system import SYSTEM
from ....tiering.errors import CheckpointError

_PIECE = 16 << 20  # bytes at a time: what a file says of its length may not be so


def open_descriptor(path: Path) -> tuple[int, int]:
    """A descriptor of the regular file at ``path``, open for reading, and its size. Raises CheckpointError."""
    with _said(path):
        descriptor = open_regular(path)
    return descriptor, os.fstat(descriptor).st_size


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read: {why}; fetch the checkpoint again") from error


class RegularFile:
    """A regular file open for positioned reads, of ``size`` bytes; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor, self.size = open_descriptor(path)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes there, all of them. Raises CheckpointError."""
        parts: list[bytes] = []
        while length:
            piece = memoryview(bytearray(min(length, _PIECE)))
            try:
                part = bytes(piece[: SYSTEM.read_at(self._descriptor, [piece], offset)])
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be read at offset {offset}: {error.strerror}") from error
            if not part:
                raise CheckpointError(f"{self.path} became shorter while it was read; fetch the checkpoint again")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __enter__(self) -> "RegularFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def read_whole(path: Path, longest: int) -> bytes:
    """The content of a small file. Raises CheckpointError for one of more than ``longest`` bytes."""
    with _said(path):
        return read_regular(path, longest)
