"""What the user says: typed at a terminal, with a history, or lines of a file or a pipe."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Protocol

from .interrupting import until_interrupted
from .saved import private_folder

_PIECE = 1 << 16


class Reader(Protocol):
    """Reads what the user says."""

    async def read(self) -> str:
        """The next text. Raises EOFError at the end, and KeyboardInterrupt for Ctrl-C."""
        ...


class PipeReader:
    """Each line of stdin is a text."""

    def __init__(self) -> None:
        self._found = b""

    async def read(self) -> str:
        """The next line."""
        descriptor = sys.stdin.fileno()  # its own readline would keep Ctrl-C waiting, too
        while b"\n" not in self._found:
            if not await until_interrupted(_until_readable(descriptor)):
                raise KeyboardInterrupt
            piece = os.read(descriptor, _PIECE)
            self._found += piece
            if not piece and not self._found:
                raise EOFError
            if not piece:
                break
        line, _, self._found = self._found.partition(b"\n")
        return line.decode(sys.stdin.encoding, sys.stdin.errors or "strict")


async def _until_readable(descriptor: int) -> None:
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:  # a file, which has nothing to wait for
        return
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


class TerminalReader:
    """Typed texts, of several lines if wanted, that are kept in ``history``, a file for its user alone."""

    def __init__(self, history: Path) -> None:
        """Raises OSError where there can be no such file."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory
        from prompt_toolkit.key_binding import KeyBindings

        from .commands import COMMANDS

        private_folder(history.parent)
        os.close(os.open(history, os.O_WRONLY | os.O_CREAT, 0o600))
        keys = KeyBindings()
        keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
        for combination in (("escape", "enter"), ("c-j",)):
            keys.add(*combination)(lambda event: event.current_buffer.insert_text("\n"))
        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)),
            multiline=True,
            key_bindings=keys,
            completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
            complete_while_typing=False,
            prompt_continuation="  ",
        )

    async def read(self) -> str:
        """The next text."""
        return await self._session.prompt_async("> ")
