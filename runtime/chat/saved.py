"""Chats as files: for their user alone, replaced as a whole."""

import os
from pathlib import Path

import aiofiles
import aiofiles.os

from ...kernels.io.regular import open_regular
from ...tiering.errors import TextError
from ...tiering.store.bundle.marks import NAME as MANIFEST
from .conversation import Conversation, parse

_ENDING = ".json"
_LONGEST = 64 << 20


class SavedChats:
    """The saved chats in ``folder``, by name. A name with a slash, or with the ending .json, is that of any file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def save(self, name: str, chat: Conversation) -> Path:
        """Write ``chat``; where. Raises TextError."""
        path = self._path(name)
        if path.name == MANIFEST:  # its folder would look like a bundle, or a bundle would be damaged
            raise TextError(f"the chat cannot be saved as {path}: bundles have such a file; choose another name")
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            if path.parent == self.folder:
                private_folder(self.folder)
            try:
                async with aiofiles.open(beside, "w", encoding="utf-8", opener=_private) as file:
                    await file.write(chat.dump())
                await aiofiles.os.replace(beside, path)
            finally:
                if await aiofiles.os.path.exists(beside):
                    await aiofiles.os.unlink(beside)
        except (OSError, ValueError) as error:  # ValueError: lone surrogates, a name that no file can have
            raise TextError(f"the chat cannot be saved as {path}: {_why(error)}; choose another name") from error
        return path

    async def load(self, name: str) -> Conversation:
        """Read a chat. Raises TextError."""
        path = self._path(name)
        try:
            async with aiofiles.open(path, encoding="utf-8", opener=open_regular) as file:
                text = await file.read(_LONGEST + 1)
            if len(text) > _LONGEST:
                raise ValueError("it is too long for a chat")
            return parse(text)
        except (OSError, ValueError, RecursionError) as error:
            raise TextError(
                f"the chat {path} cannot be read: {_why(error)}; /load lists those that are saved"
            ) from error

    def names(self) -> list[str]:
        """The names of all."""
        return sorted(path.stem for path in self.folder.glob(f"*{_ENDING}") if not path.name.startswith("."))

    def _path(self, name: str) -> Path:
        is_path = "/" in name or name.endswith(_ENDING)
        return Path(name).expanduser() if is_path else self.folder / (name + _ENDING)


def private_folder(folder: Path) -> None:
    """Make ``folder``, for its user alone. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
