"""Bodies of requests, as Ollama's clients write them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from ..answers.talking import Form, Talk
from ..openai.requests import StopOrSeveral, Tool
from ..web.bodies import Body


def _refuse(value: list[Any]) -> list[Any]:
    if value:
        raise ValueError("it is not read here; leave it out")
    return value


Unset = Annotated[list[Any], AfterValidator(_refuse)]
"""A list that may only be empty."""


class Options(Body):
    """How tokens are chosen. Those that say how to compute are ignored."""

    harmless: ClassVar[frozenset[str]] = frozenset({
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "numa",
        "num_keep", "f16_kv", "vocab_only", "logits_all",
    })  # fmt: skip
    num_predict: int | None = Field(default=None, ge=-2, le=2**31)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_k: int | None = Field(default=None, ge=0, le=2**31)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: StopOrSeveral | None = None
    repeat_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CalledFunction(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"index"})
    name: str
    arguments: dict[str, Any]


class Call(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"id", "type"})
    function: CalledFunction


class Message(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    images: Unset | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def shown(self) -> dict[str, Any]:
        """As chat templates want it."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thinking:
            found["reasoning_content"] = self.thinking
        if self.tool_name:
            found["name"] = self.tool_name
        if self.tool_calls:
            found["tool_calls"] = [
                {"type": "function", **call.model_dump(exclude_none=True)} for call in self.tool_calls
            ]
        return found


class TextRequest(Body):
    """What all requests for text have."""

    harmless: ClassVar[frozenset[str]] = frozenset({"keep_alive", "shift", "truncate"})
    model: str
    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options = Options()
    think: bool | Literal["low", "medium", "high"] | None = None

    @field_validator("options", mode="before")
    @classmethod
    def _none_is_none(cls, value: object) -> object:
        return {} if value is None else value

    def form(self) -> Form | None:
        """The form of the answer."""
        if not self.format:
            return None
        return Form("schema", {"type": "object"} if self.format == "json" else self.format)

    def variables(self) -> dict[str, Any]:
        """Those of the chat template."""
        if self.think is None:
            return {}
        effort = {"reasoning_effort": self.think} if isinstance(self.think, str) else {}
        return {"enable_thinking": bool(self.think), **effort}


class ChatRequest(TextRequest):
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None

    def talk(self) -> Talk:
        """What it asks for."""
        return Talk(
            messages=[message.shown() for message in self.messages],
            tools=[tool.function.shown() for tool in self.tools or ()],
            form=self.form(),
            variables=self.variables(),
        )


class GenerateRequest(TextRequest):
    prompt: str = Field(min_length=1)
    system: str | None = None
    raw: bool = False
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    images: Unset | None = None
    context: Unset | None = None

    def talk(self) -> Talk:
        """What it asks for."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, {"role": "user", "content": self.prompt}]
        return Talk(messages=messages, form=self.form(), variables=self.variables())


class ShowRequest(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"verbose", "name"})
    model: str
