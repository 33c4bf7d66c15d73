"""``/v1/chat/completions``."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...serving.text.replies import Piece, Said, ToolCall
from ..answers.asking import Answers, Step
from ..answers.served import ServedModel
from ..answers.service import client_of, service_of
from ..answers.talking import Talk, question_of
from ..web.bodies import read_body
from ..web.endpoints import error_reply
from ..web.replies import EventReply, WaitingReply, event
from .requests import ChatRequest, NamedTool
from .shared import DONE, LEAST, error_body, failed_event, keeps_prompt, new_id, sampling_of, usage_of


async def chat(request: Request) -> Response:
    """Go on with a chat."""
    service = service_of(request)
    body = await read_body(request, ChatRequest, service.most_body)
    served = service.find(body.model)
    if body.logprobs:
        await asyncio.to_thread(served.grammars.prepare)
    question = await question_of(
        served,
        _talk(body),
        sampling=sampling_of(served, body),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        seed=body.seed,
        count=body.n or 1,
        stops=body.stops,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        client=client_of(request),
        keep=keeps_prompt(body),
    )
    answers = Answers(served, question)
    writer = _Writer(served, answers, body)
    if body.stream:
        return EventReply(
            writer.events(), failed_event, answers.close, ping=": ping\n\n", media_type="text/event-stream"
        )
    return WaitingReply(writer.whole(), partial(error_reply, body=error_body), answers.close)


def _talk(body: ChatRequest) -> Talk:
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables["reasoning_effort"] = body.reasoning_effort
    choice = body.tool_choice
    return Talk(
        messages=[message.shown() for message in body.messages],
        tools=[tool.function.shown() for tool in body.tools or ()],
        tool_choice="required" if isinstance(choice, NamedTool) else choice or "auto",
        tool_name=choice.function.name if isinstance(choice, NamedTool) else None,
        parallel_calls=body.parallel_tool_calls is not False,
        form=body.response_format.form() if body.response_format else None,
        variables=variables,
    )


class _Writer:
    """Writes the answers to one request."""

    def __init__(self, served: ServedModel, answers: Answers, body: ChatRequest) -> None:
        self._served, self._answers, self._logprobs = served, answers, bool(body.logprobs)
        self._usage = body.stream_options is not None and body.stream_options.include_usage
        self._head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": served.name}
        self._calls = [0] * answers.count

    async def whole(self) -> Mapping[str, Any]:
        """The object, when all is there."""
        messages = [_Message() for _ in range(self._answers.count)]
        async for step in self._answers.steps():
            messages[step.index].add(step, self._token_logprobs(step))
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [message.choice(index, self._logprobs) for index, message in enumerate(messages)],
            "usage": usage_of(self._answers),
            "timings": self._answers.clock.report(),
        }

    async def events(self) -> AsyncGenerator[str, None]:
        """The chunks of a stream."""
        async with aclosing(self._answers.steps()) as steps:
            for index in range(self._answers.count):
                yield self._chunk(index, {"role": "assistant", "content": ""})
            async for step in steps:
                logprobs = self._token_logprobs(step)
                for piece in step.pieces:
                    yield self._chunk(step.index, self._delta(step.index, piece), logprobs)
                    logprobs = []
                if logprobs:
                    yield self._chunk(step.index, {}, logprobs)
                if step.ending is not None:
                    yield self._chunk(step.index, {}, finish=step.ending)
        if self._usage:
            yield event(self._headed([], usage_of(self._answers)))
        yield DONE

    def _headed(self, choices: list[Any], usage: Any) -> dict[str, Any]:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        return {**chunk, "usage": usage} if self._usage else chunk

    def _chunk(
        self, index: int, delta: Mapping[str, Any], logprobs: list[Any] | None = None, finish: str | None = None
    ) -> str:
        told = {"content": logprobs, "refusal": None} if logprobs else None
        return event(self._headed([{"index": index, "delta": delta, "logprobs": told, "finish_reason": finish}], None))

    def _delta(self, index: int, piece: Piece) -> dict[str, Any]:
        if isinstance(piece, Said):
            return {"content" if piece.kind == "content" else "reasoning_content": piece.text}
        number, self._calls[index] = self._calls[index], self._calls[index] + 1
        return {"tool_calls": [{"index": number, **_call(piece)}]}

    def _token_logprobs(self, step: Step) -> list[Any]:
        if not self._logprobs:
            return []
        top = [self._logprob(token, value) for token, value in step.token.top]
        return [{**self._logprob(step.token.id, step.token.logprob), "top_logprobs": top}]

    def _logprob(self, token: int, value: float | None) -> dict[str, Any]:
        text, raw = self._served.token_text(token)
        return {"token": text, "logprob": max(LEAST, value or 0.0), "bytes": raw}


class _Message:
    """One answer, put together."""

    def __init__(self) -> None:
        self._content, self._reasoning = "", ""
        self._calls: list[ToolCall] = []
        self._logprobs: list[Any] = []
        self._finish: str | None = None

    def add(self, step: Step, logprobs: list[Any]) -> None:
        self._finish = step.ending
        self._logprobs += logprobs
        for piece in step.pieces:
            if isinstance(piece, ToolCall):
                self._calls.append(piece)
            elif piece.kind == "content":
                self._content += piece.text
            else:
                self._reasoning += piece.text

    def choice(self, index: int, logprobs: bool) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self._content or None if self._calls else self._content,
        }
        message["refusal"] = None
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["tool_calls"] = [_call(call) for call in self._calls]
        told = {"content": self._logprobs, "refusal": None} if logprobs else None
        return {"index": index, "message": message, "logprobs": told, "finish_reason": self._finish}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": new_id("call"), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
