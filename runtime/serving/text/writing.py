"""The text of one answer, from its tokens: up to a stop string, read into pieces."""

from collections.abc import Sequence
from typing import Any, Literal

from ..requests import Token
from .decoding import TokenText
from .replies import Piece, Reader, ToolCall
from .stops import StopStrings

Ending = Literal["stop", "length", "tool_calls"]


class AnswerText:
    """The pieces of one answer. ``special``: its reader wants to see special tokens."""

    def __init__(
        self,
        tokenizer: Any,
        reader: Reader,
        *,
        special: bool = False,
        stops: Sequence[str] = (),
        ends: frozenset[int] = frozenset(),
        most_calls: int | None = None,
    ) -> None:
        """``ends`` are tokens that end answers, and are no part of them. ``most_calls`` tool calls end it, too."""
        self._text, self._reader = TokenText(tokenizer, special=special), reader
        self._stops, self._ends, self._most_calls = StopStrings(stops), ends, most_calls
        self._calls = 0
        self.ending: Ending | None = None
        """Why it has ended."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return self._stops.found

    def feed(self, token: Token) -> list[Piece]:
        """Return what ``token`` completes. Look at ``ending`` afterwards."""
        ended = token.finish is not None
        text = "" if ended and token.id in self._ends else self._text.feed(token.id)
        text = self._stops.feed(text + self._text.end() if ended else text)
        ended = ended or self._stops.found is not None
        pieces = self._reader.feed(text + self._stops.end() if ended else text)
        if ended:
            pieces += self._reader.end()
        return self._count(pieces, token.finish if self._stops.found is None else "stop")

    def _count(self, pieces: list[Piece], finish: Literal["stop", "length"] | None) -> list[Piece]:
        kept: list[Piece] = []
        for piece in pieces:
            kept.append(piece)
            self._calls += isinstance(piece, ToolCall)
            if self._calls == self._most_calls:
                finish = "stop"
                break
        self.ending = "tool_calls" if finish == "stop" and self._calls else finish
        return kept
