"""Answers on the terminal: markdown as it comes. Where the output is none, or is to be plain, the text as it is."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from .harmless import harmless

Kind = Literal["content", "reasoning"]
_PARSER = MarkdownIt().enable("table").enable("strikethrough")
_APART = 0.1
"""Seconds between two drawings of the last block."""
_BORDER = 2
"""Lines that stay free below an answer that is taller than the screen."""


class Screen:
    """Where a chat is shown."""

    def __init__(self, console: Console | None = None, *, plain: bool = False) -> None:
        self._console = console or Console(highlight=False)
        self._plain = plain or not self._console.is_terminal

    def say(self, *lines: str) -> None:
        """Show lines about the chat: on stderr where answers go to a file or a pipe."""
        if self._console.is_terminal:
            for line in lines:
                self._console.print(Text(harmless(line), style="dim"))
        else:
            print(*lines, sep="\n", file=sys.stderr, flush=True)

    @contextmanager
    def answer(self) -> Iterator["Answer"]:
        """Show an answer. What has come is shown whole at the end, whatever ends it."""
        shown: Answer = _Plain(self._console) if self._plain else _Formatted(self._console)
        try:
            yield shown
        finally:
            shown.end()

    def turn(self, role: str, text: str) -> None:
        """Show what was said before."""
        if role == "user":
            self.say(f"> {text}")
            return
        with self.answer() as shown:
            shown.feed("content", text)


class Answer:
    """An answer that is being shown."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def feed(self, kind: Kind, text: str) -> None:
        """Some more of it."""
        self._show(kind, harmless(text) if self._console.is_terminal else text)

    def end(self) -> None:
        """There is no more."""
        raise NotImplementedError

    def _show(self, kind: Kind, text: str) -> None:
        raise NotImplementedError


class _Plain(Answer):
    """The text as it is."""

    _last: Kind = "content"

    def _show(self, kind: Kind, text: str) -> None:
        """An empty line is between reasoning and content."""
        between = "\n\n" if kind != self._last == "reasoning" else ""
        self._last = kind
        self._console.file.write(between + text)
        self._console.file.flush()

    def end(self) -> None:
        """A line ends it."""
        self._console.file.write("\n")
        self._console.file.flush()


class _Formatted(Answer):
    """Markdown. Blocks that are complete are printed for good, and the last one is drawn anew as it grows."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._kind: Kind = "content"
        self._text = ""
        self._printed = False
        self._drawn = 0.0
        self._waiting: Live | None = Live(Spinner("dots"), console=console, transient=True)
        self._waiting.start()
        self._live = Live(console=console, transient=True, auto_refresh=False)  # two threads would draw over each other

    def _show(self, kind: Kind, text: str) -> None:
        self._begin()
        if kind != self._kind:
            self._print(self._text)
            self._kind, self._text = kind, ""
        self._text += text
        if "\n" in text and kind == "content":
            *done, self._text = _blocks(self._text)
            self._print("".join(done))
        now = time.monotonic()
        tail = _Lines(self._text, self._kind, most=max(1, self._console.height - _BORDER))
        self._live.update(tail, refresh=now - self._drawn > _APART)
        self._drawn = now if now - self._drawn > _APART else self._drawn

    def end(self) -> None:
        """Show the rest."""
        self._begin()
        self._live.stop()
        self._print(self._text)
        self._text = ""

    def _begin(self) -> None:
        """Wait no longer."""
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None
            self._live.start()

    def _print(self, text: str) -> None:
        for block in _blocks(text) if self._kind == "content" else [text]:
            if block.strip():
                if self._printed:
                    self._console.print()
                self._console.print(_Lines(block, self._kind), end="")
                self._printed = True


class _Lines:
    """The lines of a block, the last ``most``, without empty ones around them."""

    def __init__(self, text: str, kind: Kind, most: int | None = None) -> None:
        self._text, self._kind, self._most = text, kind, most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = Markdown(self._text) if self._kind == "content" else Text(self._text.strip(), style="dim italic")
        lines = console.render_lines(shown, options, pad=False)
        full = [at for at, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        lines = lines[full[0] : full[-1] + 1] if full else []
        for line in lines[-self._most :] if self._most else lines:
            yield from line
            yield Segment.line()


def _blocks(text: str) -> list[str]:
    """The blocks of a text in markdown, at least one, which together are the text."""
    starts = sorted({token.map[0] for token in _PARSER.parse(text) if token.level == 0 and token.map} - {0})
    lines = text.splitlines(keepends=True)
    return ["".join(lines[begin:end]) for begin, end in pairwise([0, *starts, len(lines)])]
