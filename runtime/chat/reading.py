"""What the user says: typed at a terminal, with a history, or lines of a file or a pipe."""

import os
import sys
from pathlib import Path
from typing import Protocol

from .saved import private_folder


class Reader(Protocol):
    """Reads what the user says."""

    async def read(self) -> str:
        """The next text. Raises EOFError at the end, and KeyboardInterrupt for Ctrl-C."""
        ...


class PipeReader:
    """Each line is a text."""

    async def read(self) -> str:
        """The next line. Nothing else is to be done meanwhile."""
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line


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
