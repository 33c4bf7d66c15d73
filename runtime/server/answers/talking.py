"""From messages and tools to a question: the chat template, who reads the answer, and the grammar that it keeps to."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ....tiering.errors import RequestError
from ...serving.requests import Sampling
from ...serving.text.grammars import NewMask
from ...serving.text.replies import CallReader, PlainReader, template_reader
from .asking import Question
from .served import ServedModel

ToolChoice = Literal["auto", "none", "required"]


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer has to look like: JSON that keeps to a schema, or text of a grammar."""

    kind: Literal["schema", "regex", "lark"]
    rule: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """A chat to go on with. ``tools`` are functions: ``name``, ``description``, ``parameters``. ``tool_name`` is that
    which has to be called."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    parallel_calls: bool = True
    form: Form | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Of the chat template."""


async def question_of(served: ServedModel, talk: Talk, *, sampling: Sampling, **options: Any) -> Question:
    """Return the question that ``talk`` asks ``served``; ``options`` are as for Question. Raises RequestError."""
    return await asyncio.to_thread(_question_of, served, talk, sampling, options)


async def mask_of(served: ServedModel, form: Form | None) -> NewMask | None:
    """Return the mask of ``form``. Raises RequestError."""
    return None if form is None else await asyncio.to_thread(_mask_of, served, form)


def _question_of(served: ServedModel, talk: Talk, sampling: Sampling, options: Mapping[str, Any]) -> Question:
    tools = () if talk.tool_choice == "none" else talk.tools
    shown = [{"type": "function", "function": dict(tool)} for tool in tools]
    prompt = served.chat.encode([_as_known(served, message) for message in talk.messages], shown, talk.variables)
    reading = _calling(served, talk, tools) if tools else {}
    if talk.form is not None:
        if tools:
            raise RequestError("an answer either calls tools or keeps to a format; leave one of them out")
        reading = {"mask": _mask_of(served, talk.form), "reader": PlainReader}
    if not reading and served.response_template is not None:
        template = served.response_template
        template_reader(served.tokenizer, template, prompt, shown)  # what it objects to is said now
        reading = {
            "reader": lambda: template_reader(served.tokenizer, template, prompt, shown),
            "special": True,
            "most_calls": None if talk.parallel_calls else 1,
        }
    return Question(prompt=prompt, sampling=sampling, **reading, **options)


def _calling(served: ServedModel, talk: Talk, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How an answer is read that has to call a tool; {} if it may."""
    if talk.tool_name is not None:
        tools = [tool for tool in tools if tool["name"] == talk.tool_name]
        if not tools:
            raise RequestError(f"tool_choice names {talk.tool_name!r}, which is none of the tools")
    elif talk.tool_choice != "required":
        if served.response_template is None:
            raise RequestError(
                "how this model writes tool calls is not known: its tokenizer has no response template; "
                'ask for a call with tool_choice "required", or leave the tools out'
            )
        return {}
    return {"mask": served.grammars.of_calls(tools), "reader": CallReader}


def _mask_of(served: ServedModel, form: Form) -> NewMask:
    if form.kind == "schema":
        return served.grammars.of_schema(form.rule)
    return served.grammars.of_regex(form.rule) if form.kind == "regex" else served.grammars.of_lark(form.rule)


def _as_known(served: ServedModel, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A developer is the system where the chat template does not know developers."""
    if message["role"] == "developer" and not served.chat.mentions("developer"):
        return {**message, "role": "system"}
    return message
