"""Bodies of requests, as OpenAI's clients write them, with fields that other servers know too."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, field_validator, model_validator

from ..answers.talking import Form
from ..web.bodies import ONE, ONE_OR_SEVERAL, SEVERAL, Body

HARMLESS = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
                      "prompt_cache_retention", "prompt_cache_options", "prediction"})  # fmt: skip
"""Fields that say who asks, or how to account and cache it."""

Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(max_length=1000)]
StopOrSeveral = Annotated[
    Annotated[Stop, Tag(ONE)] | Annotated[list[Stop], Field(max_length=16), Tag(SEVERAL)], ONE_OR_SEVERAL
]


class SamplingBody(Body):
    """How tokens are chosen, in all requests for text."""

    harmless: ClassVar[frozenset[str]] = HARMLESS
    model: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Bias] | None = Field(default=None, max_length=1024)
    max_tokens: int | None = Field(default=None, ge=1, le=2**31)
    n: int | None = Field(default=None, ge=1, le=128)
    stop: StopOrSeveral | None = None
    stream: bool | None = None

    @field_validator("logit_bias")
    @classmethod
    def _names_tokens(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token in value or ():
            if not (token.isascii() and token.isdecimal() and len(token) < 10):
                raise ValueError(f"{token[:40]!r} is no token; keys are the numbers of tokens")
        return value

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class StreamOptions(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})
    include_usage: bool = False


class Part(Body):
    """A part of a message."""

    harmless: ClassVar[frozenset[str]] = frozenset({"annotations", "cache_control", "prompt_cache_breakpoint"})
    type: str
    text: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in ("text", "input_text", "output_text"):
            raise ValueError(f"parts of type {kind[:40]!r} are not read here: the model reads text")
        return value


Content = Annotated[Annotated[str, Tag(ONE)] | Annotated[list[Part], Tag(SEVERAL)], ONE_OR_SEVERAL]


class Function(Body):
    """A function that the model may call."""

    harmless: ClassVar[frozenset[str]] = frozenset({"strict"})
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None

    def shown(self) -> dict[str, Any]:
        """As chat templates want it."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        return {"name": self.name, "description": self.description or "", "parameters": parameters}


class Tool(Body):
    type: Literal["function"]
    function: Function


class CalledFunction(Body):
    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, value: str) -> str:
        if not isinstance(json.loads(value or "{}"), dict):
            raise ValueError("it is no JSON object")
        return value


class Call(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"index"})
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"refusal", "annotations", "reasoning"})
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.reasoning_content)):
            raise ValueError("the message has no content")
        return self

    def shown(self) -> dict[str, Any]:
        """As chat templates want it."""
        found = self.model_dump(include={"role", "name", "tool_call_id", "reasoning_content"}, exclude_none=True)
        found["content"] = self.text
        if self.tool_calls:
            found["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": json.loads(call.function.arguments or "{}"),
                    },
                }
                for call in self.tool_calls
            ]
        return found

    @property
    def text(self) -> str:
        """The content, put together."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class JsonSchema(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"name", "description", "strict"})
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body):
    """The form of an answer. ``grammar`` is one in Lark's notation."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    pattern: str | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> "ResponseFormat":
        needed = {"json_schema": self.json_schema, "regex": self.pattern, "grammar": self.grammar}
        if needed.get(self.type, "") is None:
            raise ValueError(f"the {'pattern' if self.type == 'regex' else self.type} is missing")
        return self

    def form(self) -> Form | None:
        """What it asks for."""
        if self.type == "json_object":
            return Form("schema", {"type": "object"})
        if self.json_schema is not None:
            return Form("schema", self.json_schema.schema_)
        if self.pattern is not None:
            return Form("regex", self.pattern)
        return None if self.grammar is None else Form("lark", self.grammar)


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(SamplingBody):
    harmless: ClassVar[frozenset[str]] = HARMLESS | {"verbosity", "timings_per_token", "cache_prompt"}
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice asks for a call, but there are no tools")
        return self


Ids = Annotated[list[int], Field(min_length=1)]


class CompletionRequest(SamplingBody):
    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=128)]
        | Annotated[list[Ids], Field(min_length=1, max_length=128)]
    )
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _fits(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of is not known here; ask for n answers, and choose")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo tells no logprobs of the prompt; leave one of them out")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        prompt: Any = self.prompt
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        found: list[str | list[int]] = prompt if several else [prompt]
        return found
