"""Small files: read whole, and replaced so that a crash leaves the old content or the new.

While a model runs they go through aiofiles, on the background loop; the caller waits for the result. Where no loop runs
the same functions run in the calling thread.
"""

import errno
import functools
import glob
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

from ...kernels.io.regular import open_regular, read_regular
from ...kernels.io.system import SYSTEM
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

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if _here.in_pool:  # it would wait for a thread of the pool that it is in
            return function(*args, **kwargs)

        async def awaited() -> Result:
            from aiofiles.os import wrap  # imported when the loop was made: without one it is not needed

            return await wrap(in_pool)(*args, **kwargs)

        return run(awaited, lambda: function(*args, **kwargs))

    return call


@on_loop
def write_durably(path: Path, content: str | Iterable[bytes], *, mode: int | None = None, alone: bool = True) -> None:
    """Replace the file ``path`` by ``content`` so that a crash leaves the old content or the new. Where ``path`` is a
    link, the link is replaced, and not what it leads to.

    ``mode`` is that of the file, whatever the umask; None: as the umask has it. ``alone``: nobody else writes ``path``
    meanwhile, because the caller holds a lock; then what killed writers have left beside it goes. Raises OSError, and
    leaves ``path`` as it was.
    """
    beginning = f".{path.name[:200]}."
    if alone:
        for left in path.parent.glob(f"{glob.escape(beginning)}{'[0-9a-f]' * 32}.tmp"):
            left.unlink(missing_ok=True)
    # Nobody can put a link there beforehand: the name is not to be guessed, and a file that is there is an error.
    aside = path.with_name(f"{beginning}{secrets.token_hex(16)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = open_regular(aside, flags, mode, follow=False)
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
def append(path: Path, content: bytes, *, mode: int = 0o600, durable: bool = False) -> None:
    """Append ``content`` to the file ``path`` in one write. It is made with ``mode``, whatever the umask, and is never
    a file that ``path`` is a link to. ``durable``: it is on the drive afterwards. Raises OSError."""
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode, follow=False)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@on_loop
def read_small(path: Path, most: int, *, follow: bool = True, private: bool = False) -> bytes:
    """The content of the file ``path``, at most ``most`` bytes of which there may be. Opening never waits, and what is
    no file with content of its own is an error. So is a link without ``follow``, for folders of ours, and a file that
    others may write, if it is to be ``private``.

    Raises OSError, whose ``strerror`` says what is wrong.
    """
    return read_regular(path, most, follow=follow, private=private)


def make_folder(folder: Path, *, parents: bool = False) -> None:
    """Make the ``folder``, for this user only whatever the umask, if it is not there. A link is none: what is written
    below the store stays there. Raises OSError."""
    try:
        folder.mkdir(mode=0o700, parents=parents)
    except FileExistsError:
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "it is a link, and must be a folder", str(folder)) from None
        if not folder.is_dir():
            raise
    else:
        folder.chmod(0o700)


def in_words(error: OSError) -> str:
    """What failed, for a message that names the folder: no number of an error, and what to do about a full drive."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "its drive is full, make room there"
    return error.strerror or str(error)


def sync_folder(folder: Path) -> None:
    """Make names made or renamed in ``folder`` durable."""
    SYSTEM.sync_folder(folder)
