"""The file of answers: one line each, appended as they come. What a killed run has left there is gone on from."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiofiles
import aiofiles.os

from ...kernels.io.regular import open_regular
from ...kernels.io.system import SYSTEM
from ...tiering.errors import BatchError


class AnswersFile:
    """The answers in the file ``path``. ``done`` are the requests that have one."""

    def __init__(self, path: Path, file: Any, done: set[str]) -> None:
        self._path, self._file, self.done = path, file, done
        self._lock = asyncio.Lock()

    async def add(self, answer: dict[str, Any]) -> None:
        """Append ``answer``: it is in the file when this returns. Raises BatchError."""
        line = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        async with self._lock:
            with _writing(self._path):
                await self._file.write(line)
                await self._file.flush()

    async def close(self) -> None:
        """No more come. Raises BatchError."""
        with _writing(self._path):
            await self._file.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BatchError(
            f"{path}: answers cannot be written ({error.strerror}); the same command goes on from here"
        ) from error


@asynccontextmanager
async def opened(path: Path, known: Collection[str]) -> AsyncIterator[AnswersFile]:
    """The file of answers to the requests ``known``, made for this user alone if it is not there. An answer
    that a killed run has begun to write goes. Raises BatchError."""
    answers = await _open(path, known)
    try:
        yield answers
    except BaseException:
        with suppress(BatchError):  # closing tries once more to write what could not be, and it is said already
            await answers.close()
        raise
    await answers.close()


async def _open(path: Path, known: Collection[str]) -> AnswersFile:
    try:
        async with AsyncExitStack() as stack:
            file = await stack.enter_async_context(aiofiles.open(path, "ab", opener=_open_private))
            if not SYSTEM.lock(file.fileno(), wait=False):
                raise BatchError(f"{path}: another batch writes it; wait for it, or name another file with -o")
            done, length = await _read_done(path, known)
            if length < (await aiofiles.os.stat(path)).st_size:
                await file.truncate(length)
            stack.pop_all()
    except OSError as error:
        raise BatchError(f"{path} cannot be written: {error.strerror}; name another file with -o") from error
    return AnswersFile(path, file, done)


async def _read_done(path: Path, known: Collection[str]) -> tuple[set[str], int]:
    """The requests that have answers in the file ``path``, and the bytes up to which it is whole."""
    done: set[str] = set()
    length = 0
    async with aiofiles.open(path, "rb") as file:
        async for raw in file:
            custom_id = _find_id(raw) if raw.endswith(b"\n") else None
            if custom_id is None:
                if raw.endswith(b"\n"):
                    raise BatchError(f"{path} has lines that are no answers of a batch; name another file with -o")
                break
            if custom_id not in known:
                raise BatchError(
                    f"{path} has an answer to {custom_id!r}, which is no request of this file; "
                    "name another file with -o"
                )
            done.add(custom_id)
            length += len(raw)
    return done, length


def _find_id(raw: bytes) -> str | None:
    try:
        found = json.loads(raw)["custom_id"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return found if isinstance(found, str) else None


def _open_private(path: str, flags: int) -> int:
    return open_regular(path, flags | os.O_APPEND, 0o600, follow=False)
