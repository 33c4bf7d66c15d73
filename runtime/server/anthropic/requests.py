"""Bodies of requests, as Anthropic's clients write them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from ..answers.talking import Form, Talk, ToolChoice
from ..openai.requests import StopOrSeveral
from ..web.bodies import ONE, ONE_OR_SEVERAL, SEVERAL, Body

_CACHING = frozenset({"cache_control", "citations"})
_BILLING = "x-anthropic-billing-header:"
"""Begins a line that some clients put before their system prompt. It is another one in each request, and would part it
from all prompts that are stored."""


class Block(Body):
    """A part of a message."""

    harmless: ClassVar[frozenset[str]] = _CACHING | {"signature", "data", "caller"}
    type: Literal["text", "tool_use", "tool_result", "thinking", "redacted_thinking"]
    text: str = ""
    thinking: str = ""
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "Content | None" = None
    is_error: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind in ("image", "document", "container_upload", "search_result"):
            raise ValueError(f"blocks of type {kind!r} are not read here: the model reads text")
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> "Block":
        if self.type == "tool_use" and (not self.name or self.input is None):
            raise ValueError("a tool_use has a name and an input")
        return self


Content = Annotated[Annotated[str, Tag(ONE)] | Annotated[list[Block], Tag(SEVERAL)], ONE_OR_SEVERAL]


class Message(Body):
    role: Literal["user", "assistant", "system"]
    content: Content

    def shown(self) -> list[dict[str, Any]]:
        """As chat templates want it: results of tools are messages of their own."""
        blocks = [Block(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        found: list[dict[str, Any]] = [
            {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content)}
            for block in blocks
            if block.type == "tool_result"
        ]
        own: dict[str, Any] = {"role": self.role, "content": _text([each for each in blocks if each.type == "text"])}
        if thought := "".join(block.thinking for block in blocks):
            own["reasoning_content"] = thought
        calls = [
            {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
            for block in blocks
            if block.type == "tool_use"
        ]
        if calls:
            own["tool_calls"] = calls
        if own["content"] or calls or thought or not found:
            found.append(own)
        return found


class Tool(Body):
    harmless: ClassVar[frozenset[str]] = _CACHING | {"strict", "eager_input_streaming"}
    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    input_schema: dict[str, Any]


class Choice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"budget_tokens", "display"})
    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    effort: str | None = None
    format: OutputFormat | None = None


class CountRequest(Body):
    """Messages, of which the tokens are counted."""

    harmless: ClassVar[frozenset[str]] = _CACHING | {"metadata", "service_tier", "context_management"}
    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    system: Content | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def talk(self) -> Talk:
        """What they ask for."""
        system = _system(self.system)
        messages = [{"role": "system", "content": system}] if system else []
        choice = self.tool_choice or Choice(type="auto")
        choices: dict[str, ToolChoice] = {"auto": "auto", "none": "none", "any": "required", "tool": "required"}
        output = self.output_config or OutputConfig()
        variables: dict[str, Any] = (
            {} if self.thinking is None else {"enable_thinking": self.thinking.type != "disabled"}
        )
        if output.effort is not None:
            variables["reasoning_effort"] = output.effort
        return Talk(
            messages=[*messages, *(each for message in self.messages for each in message.shown())],
            tools=[
                {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
                for tool in self.tools or ()
            ],
            tool_choice=choices[choice.type],
            tool_name=choice.name if choice.type == "tool" else None,
            parallel_calls=not choice.disable_parallel_tool_use,
            form=None if output.format is None else Form("schema", output.format.schema_),
            variables=variables,
        )


class MessagesRequest(CountRequest):
    """Messages to answer."""

    max_tokens: int = Field(ge=1, le=2**31)
    stop_sequences: StopOrSeveral | None = None
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31)

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop_sequences] if isinstance(self.stop_sequences, str) else self.stop_sequences or []


def _text(content: str | list[Block] | None) -> str:
    if isinstance(content, list):
        return "".join(block.text for block in content)
    return content or ""


def _system(content: str | list[Block] | None) -> str:
    """The system prompt, less what is another one in each request."""
    blocks = [content or ""] if not isinstance(content, list) else [block.text for block in content]
    return "\n\n".join(kept for text in blocks if (kept := _less_billing(text)))


def _less_billing(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(_BILLING) else text
