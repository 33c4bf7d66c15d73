"""Small files: read whole, and replaced so that a crash leaves the old content or the new.

While a model runs they go through aiofiles, on the background loop; the caller waits for the result. Where no loop runs
the same functions run in the calling thread.
"""

import functools
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

from aiofiles.os import wrap

from .background import run

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Here(threading.local):
    """The state of the calling thread."""

    in_pool = False


_here = _Here()


def on_loop(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``function``, which handles a small file, run by aiofiles on the background loop while that is there."""

    @functools.wraps(function)
    def in_pool(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        _here.in_pool = True
        try:
            return function(*args, **kwargs)
        finally:
            _here.in_pool = False

    through_pool = wrap(in_pool)

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if _here.in_pool:  # it would wait for a thread of the pool that it is in
            return function(*args, **kwargs)

        async def awaited() -> Result:
            return await through_pool(*args, **kwargs)

        return run(awaited, lambda: function(*args, **kwargs))

    return call


@on_loop
def write_durably(path: Path, content: str | Iterable[bytes], *, mode: int = 0o666, alone: bool = True) -> None:
    """Replace the file ``path`` by ``content``, with ``mode``, so that a crash leaves the old content or the new.

    ``alone``: nobody else writes ``path`` meanwhile, because the caller holds a lock. Raises OSError, and leaves
    ``path`` as it was.
    """
    name = path.name if alone else f".{path.name[:200]}.{secrets.token_hex(8)}"
    aside = path.with_name(f"{name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if alone else os.O_EXCL)
    descriptor = os.open(aside, flags, mode)
    try:
        with open(descriptor, "wb") as file:
            file.writelines([content.encode()] if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
    sync_folder(path.parent)


@on_loop
def append(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Append ``content`` to the file ``path``, which is made with ``mode``, in one write. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, mode)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


@on_loop
def read_whole(path: Path) -> bytes:
    """The content of the file ``path``. Raises OSError."""
    return path.read_bytes()


def sync_folder(folder: Path) -> None:
    """Make names made or renamed in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
