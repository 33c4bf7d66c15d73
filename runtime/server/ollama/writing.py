"""Answers as Ollama writes them: one JSON object a line."""

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from ...serving.text.replies import Piece, ToolCall
from ..answers.asking import Answers, Step
from ..answers.served import ServedModel
from ..web.endpoints import note_error
from ..web.errors import ApiError

Said = dict[str, Any]
"""What one line says, in the words of its endpoint."""


def error_body(error: ApiError) -> dict[str, Any]:
    """An error as Ollama writes it."""
    return {"error": error.message}


def failed_line(error: BaseException) -> str:
    """The line of an error."""
    return line(error_body(note_error(error)))


def line(document: Mapping[str, Any]) -> str:
    """One object, on a line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"


class Writer:
    """Writes one answer. ``say`` puts content, reasoning and tool calls in the words of an endpoint."""

    def __init__(
        self, served: ServedModel, answers: Answers, say: Callable[[str, str, Sequence[ToolCall]], Said]
    ) -> None:
        self._name, self._answers, self._say = served.name, answers, say

    async def whole(self) -> Mapping[str, Any]:
        """The object, when all is there."""
        pieces: list[Piece] = []
        last = None
        async for step in self._answers.steps():
            pieces += step.pieces
            last = step
        return {**self._head(), **self._words(pieces), **self._end(last)}

    async def lines(self) -> AsyncGenerator[str, None]:
        """The lines of a stream."""
        last = None
        async with aclosing(self._answers.steps()) as steps:
            async for step in steps:
                last = step
                if step.pieces:
                    yield line({**self._head(), **self._words(step.pieces), "done": False})
        yield line({**self._head(), **self._words([]), **self._end(last)})

    def ping(self) -> str:
        """A line that says nothing."""
        return line({**self._head(), **self._words([]), "done": False})

    def _head(self) -> dict[str, Any]:
        return {"model": self._name, "created_at": datetime.now(UTC).isoformat()}

    def _words(self, pieces: Sequence[Piece]) -> Said:
        content = reasoning = ""
        calls: list[ToolCall] = []
        for piece in pieces:
            if isinstance(piece, ToolCall):
                calls.append(piece)
            elif piece.kind == "content":
                content += piece.text
            else:
                reasoning += piece.text
        return self._say(content, reasoning, calls)

    def _end(self, last: Step | None) -> dict[str, Any]:
        clock = self._answers.clock
        return {
            "done": True,
            "done_reason": "length" if last is not None and last.ending == "length" else "stop",
            "total_duration": _nanoseconds(clock.prompt_seconds + clock.answer_seconds),
            "load_duration": 0,
            "prompt_eval_count": self._answers.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(clock.prompt_seconds),
            "eval_count": clock.tokens,
            "eval_duration": _nanoseconds(clock.answer_seconds),
        }


def in_chat(content: str, reasoning: str, calls: Sequence[ToolCall]) -> Said:
    """As ``/api/chat`` says it."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning:
        message["thinking"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": json.loads(call.arguments)}} for call in calls
        ]
    return {"message": message}


def in_generate(content: str, reasoning: str, calls: Sequence[ToolCall]) -> Said:
    """As ``/api/generate`` says it, where there are no tools."""
    return {"response": content, **({"thinking": reasoning} if reasoning else {})}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
