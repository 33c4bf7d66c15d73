"""Bodies of requests to ``/v1/responses``."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from ..answers.talking import Form, Talk
from ..web.bodies import ONE, ONE_OR_SEVERAL, SEVERAL, Body
from .requests import HARMLESS, CalledFunction, Content, Function, JsonSchema, Part

_IDS = frozenset({"id", "status", "phase"})


class SaidItem(Body):
    harmless: ClassVar[frozenset[str]] = _IDS
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class CallItem(CalledFunction):
    harmless: ClassVar[frozenset[str]] = _IDS | {"namespace"}
    type: Literal["function_call"]
    call_id: str


class OutputItem(Body):
    harmless: ClassVar[frozenset[str]] = _IDS
    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningPart(Body):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Body):
    harmless: ClassVar[frozenset[str]] = _IDS | {"summary", "encrypted_content"}
    type: Literal["reasoning"]
    content: list[ReasoningPart] | None = None


def _kind(value: Any) -> str:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else "message"


Item = Annotated[
    Annotated[SaidItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]
Input = Annotated[Annotated[str, Tag(ONE)] | Annotated[list[Item], Field(min_length=1), Tag(SEVERAL)], ONE_OR_SEVERAL]


class Tool(Function):
    type: Literal["function"]


class NamedTool(Body):
    type: Literal["function"]
    name: str


class Format(JsonSchema):
    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")


class Text(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"verbosity"})
    format: Format | None = None


class Reasoning(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"summary", "generate_summary"})
    effort: str | None = None


class ResponsesRequest(Body):
    """Input to answer. Nothing is stored: each request brings all of its conversation."""

    harmless: ClassVar[frozenset[str]] = HARMLESS | {"stream_options", "include"}
    model: str | None = None
    input: Input
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=2**31)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stream: bool | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None

    def talk(self) -> Talk:
        """What it asks for."""
        choice = self.tool_choice
        form = self.text.format if self.text else None
        effort = self.reasoning.effort if self.reasoning else None
        return Talk(
            messages=self._messages(),
            tools=[tool.shown() for tool in self.tools or ()],
            tool_choice="required" if isinstance(choice, NamedTool) else choice or "auto",
            tool_name=choice.name if isinstance(choice, NamedTool) else None,
            parallel_calls=self.parallel_tool_calls is not False,
            form=None if form is None or form.type == "text" else Form("schema", form.schema_),
            variables={} if effort is None else {"reasoning_effort": effort},
        )

    def _messages(self) -> list[dict[str, Any]]:
        """As chat templates want them: reasoning and calls are a part of what the assistant says."""
        found: list[dict[str, Any]] = []
        if self.instructions:
            found.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*found, {"role": "user", "content": self.input}]
        for item in self.input:
            match item:
                case SaidItem(role="assistant"):
                    self._assistant(found)["content"] += _text(item.content)
                case SaidItem():
                    found.append({"role": item.role, "content": _text(item.content)})
                case CallItem():
                    function = {"name": item.name, "arguments": json.loads(item.arguments or "{}")}
                    call = {"id": item.call_id, "type": "function", "function": function}
                    self._assistant(found).setdefault("tool_calls", []).append(call)
                case OutputItem():
                    found.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
                case ReasoningItem() if item.content:
                    thought = "".join(part.text for part in item.content)
                    found.append({"role": "assistant", "content": "", "reasoning_content": thought})
        return found

    @staticmethod
    def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The message of the assistant that is the last one."""
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        return messages[-1]


def _text(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text or "" for part in content)
