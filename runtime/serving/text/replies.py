"""What an answer says: content, reasoning and tool calls, told apart as its text comes."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

_REASONING = frozenset({"reasoning_content", "reasoning", "thinking"})
"""What response templates call it."""
_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Said:
    """Some more text of the answer, or of the reasoning before it."""

    kind: Literal["content", "reasoning"]
    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole tool call. ``arguments`` is a JSON object, as text."""

    name: str
    arguments: str


Piece = Said | ToolCall


class Reader(Protocol):
    """Reads the text of one answer."""

    def feed(self, text: str) -> list[Piece]:
        """Return what ``text`` completes."""
        ...

    def end(self) -> list[Piece]:
        """Return the rest."""
        ...


class PlainReader:
    """All text is content."""

    def feed(self, text: str) -> list[Piece]:
        return [Said("content", text)] if text else []

    def end(self) -> list[Piece]:
        return []


class CallReader:
    """The text is one JSON object, with the name and the arguments of a tool call. A grammar sees to it."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, text: str) -> list[Piece]:
        self._text += text
        return []

    def end(self) -> list[Piece]:
        with suppress(ValueError, TypeError, KeyError):
            call = json.loads(self._text)
            return [ToolCall(call["name"], json.dumps(call["arguments"], ensure_ascii=False))]
        return PlainReader().feed(self._text)  # it was cut


class TemplateReader:
    """Reads by a response template of transformers, from its parser. White space around each part is dropped."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._plain = False
        self._space, self._begun = "", False
        self._raw = ""  # since a part has begun: of a tool call that is not complete
        self._begin = parser.initial_events

    def feed(self, text: str) -> list[Piece]:
        if self._plain:
            return PlainReader().feed(text)
        pieces: list[Piece] = []
        for at, character in enumerate(text):  # one by one: what comes before a fault is told
            self._raw += character
            try:
                pieces += self._read(self._parser.feed(character))
            except Exception:  # a tool call that is none; the parser checks nothing before it closes
                return [*pieces, *self._give_up(text[at + 1 :])]
        return pieces

    def end(self) -> list[Piece]:
        if self._plain:
            return []
        try:
            _, events = self._parser.finalize()
        except Exception:
            return self._give_up("")
        return self._read(events)

    def _read(self, events: Sequence[Mapping[str, Any]]) -> list[Piece]:
        pieces: list[Piece] = []
        for event in [*self._begin, *events]:
            field = event["field"]
            if event["type"] == "region_open":
                self._space, self._begun, self._raw = "", False, ""
            elif event["type"] == "region_chunk" and field == _CALLS:
                self._raw = self._raw or event["text"]  # it came with the beginning
            elif event["type"] == "region_chunk" and (field == "content" or field in _REASONING):
                if text := self._trim(event["text"]):
                    pieces.append(Said("content" if field == "content" else "reasoning", text))
            elif event["type"] == "region_close" and field == _CALLS:
                pieces += _calls_of(event["value"], self._raw)
        self._begin = ()
        return pieces

    def _trim(self, text: str) -> str:
        text = self._space + text if self._begun else text.lstrip()
        whole = text.rstrip()
        self._space = text[len(whole) :]
        self._begun = self._begun or bool(whole)
        return whole

    def _give_up(self, text: str) -> list[Piece]:
        """Tell the rest as it is."""
        self._plain = True
        return PlainReader().feed(self._raw + text)


def _calls_of(value: Any, raw: str) -> list[Piece]:
    """The tool calls that a response template has found. Their text, if it is none."""
    calls = value if isinstance(value, list) else [value]
    try:
        return [_call_of(call.get("function", call)) for call in calls]
    except (AttributeError, KeyError, TypeError):
        return PlainReader().feed(raw)


def _call_of(function: Mapping[str, Any]) -> ToolCall:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(str(function["name"]), text)


def find_response_template(model: Any, tokenizer: Any) -> Any:
    """Return how answers of ``model`` are read: its tokenizer's response template, or the one that transformers has for
    models of its kind. None if there is none."""
    own = getattr(tokenizer, "response_template", None)
    if own is not None:
        return own
    with suppress(ImportError):  # older versions
        from transformers.cli.serving.utils import get_response_template

        return get_response_template(tokenizer, model)
    return None


def template_reader(
    tokenizer: Any, template: Any, prompt: Sequence[int], tools: Sequence[Mapping[str, Any]] | None
) -> TemplateReader:
    """A reader by ``template``, for the answer to ``prompt``, which may have begun it."""
    prefix = tokenizer.decode(list(prompt))
    return TemplateReader(
        tokenizer.get_response_parser(template, prefix=prefix, tools=[dict(tool) for tool in tools or ()] or None)
    )
