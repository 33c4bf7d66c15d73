"""``/v1/responses``."""

import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...serving.text.replies import Piece, ToolCall
from ..answers.asking import Answers
from ..answers.served import ServedModel
from ..answers.service import client_of, service_of
from ..answers.talking import question_of
from ..web.bodies import read_body
from ..web.endpoints import error_reply, note_error
from ..web.replies import EventReply, WaitingReply, event
from .response_requests import ResponsesRequest
from .shared import error_body, keeps_prompt, new_id

_PARTS = {"content": ("message", "output_text"), "reasoning": ("reasoning", "reasoning_text")}
"""The item and the part of what is said."""


async def respond(request: Request) -> Response:
    """Answer input. Nothing is stored."""
    service = service_of(request)
    body = await read_body(request, ResponsesRequest, service.most_body)
    served = service.find(body.model)
    question = await question_of(
        served,
        body.talk(),
        sampling=served.sampling(temperature=body.temperature, top_p=body.top_p),
        max_tokens=body.max_output_tokens,
        client=client_of(request),
        keep=keeps_prompt(body),
    )
    answers = Answers(served, question)
    writer = _Writer(served, answers, body)
    if body.stream:
        ping, media_type = ": ping\n\n", "text/event-stream"
        return EventReply(writer.events(), writer.failed, answers.close, ping=ping, media_type=media_type)
    return WaitingReply(writer.whole(), partial(error_reply, body=error_body), answers.close)


class _Writer:
    """Writes one response, as items."""

    def __init__(self, served: ServedModel, answers: Answers, body: ResponsesRequest) -> None:
        self._answers, self._number = answers, 0
        self._items: list[dict[str, Any]] = []
        self._response: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": served.name,
            "output": [],
            "usage": None,
            "store": False,
            **body.model_dump(
                mode="json",
                by_alias=True,
                include={"instructions", "max_output_tokens", "temperature", "top_p", "reasoning", "text"},
            ),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "tool_choice": "auto" if body.tool_choice is None else body.model_dump()["tool_choice"],
            "tools": [{**tool.model_dump(), "strict": False} for tool in body.tools or ()],
        }

    async def whole(self) -> Mapping[str, Any]:
        """The object, when all is there."""
        async for _ in self._written():
            pass
        return self._response

    async def events(self) -> AsyncGenerator[str, None]:
        """The events of a stream."""
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)
        async with aclosing(self._written()) as written:
            async for each in written:
                yield each
        yield self._event(f"response.{self._response['status']}", response=self._response)

    def failed(self, error: BaseException) -> str:
        """The event of an error."""
        found = note_error(error)
        return self._event("error", code=found.code, message=found.message, param=found.param)

    async def _written(self) -> AsyncGenerator[str, None]:
        """Write the response. Yields the events of its items."""
        ending = None
        async with aclosing(self._answers.steps()) as steps:
            async for step in steps:
                ending = step.ending
                for piece in step.pieces:
                    for each in self._write(piece):
                        yield each
        for each in self._end_said():
            yield each
        prompt, told = self._answers.prompt_tokens, self._answers.clock.tokens
        self._response |= {
            "status": "incomplete" if ending == "length" else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if ending == "length" else None,
            "output": self._items,
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": self._answers.cached_tokens},
                "output_tokens": told,
                "total_tokens": prompt + told,
            },
        }

    def _write(self, piece: Piece) -> Iterator[str]:
        if isinstance(piece, ToolCall):
            yield from self._end_said()
            yield from self._call(piece)
            return
        kind, part = _PARTS[piece.kind]
        if not self._items or self._items[-1]["type"] != kind:
            yield from self._end_said()
            yield from self._begin_said(kind, part)
        self._items[-1]["content"][0]["text"] += piece.text
        more: dict[str, Any] = {"logprobs": []} if part == "output_text" else {}
        yield self._item_event(f"response.{part}.delta", content_index=0, delta=piece.text, **more)

    def _begin_said(self, kind: str, part: str) -> Iterator[str]:
        more: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        item = {"id": new_id("msg" if kind == "message" else "rs"), "type": kind, "status": "in_progress", **more}
        self._items.append({**item, "content": []})
        yield self._item_event("response.output_item.added", item=self._items[-1])
        self._items[-1]["content"].append(
            {"type": part, "text": "", **({"annotations": []} if kind == "message" else {})}
        )
        yield self._item_event("response.content_part.added", content_index=0, part=self._items[-1]["content"][0])

    def _end_said(self) -> Iterator[str]:
        """End what is being said, if something is."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return
        item = self._items[-1]
        item["status"] = "completed"
        part = item["content"][0]
        more: dict[str, Any] = {"logprobs": []} if part["type"] == "output_text" else {}
        yield self._item_event(f"response.{part['type']}.done", content_index=0, text=part["text"], **more)
        yield self._item_event("response.content_part.done", content_index=0, part=part)
        yield self._item_event("response.output_item.done", item=item)

    def _call(self, call: ToolCall) -> Iterator[str]:
        item = {"id": new_id("fc"), "type": "function_call", "call_id": new_id("call"), "name": call.name}
        self._items.append({**item, "arguments": "", "status": "in_progress"})
        yield self._item_event("response.output_item.added", item=self._items[-1])
        yield self._item_event("response.function_call_arguments.delta", delta=call.arguments)
        self._items[-1] |= {"arguments": call.arguments, "status": "completed"}
        yield self._item_event("response.function_call_arguments.done", arguments=call.arguments, name=call.name)
        yield self._item_event("response.output_item.done", item=self._items[-1])

    def _item_event(self, kind: str, **fields: Any) -> str:
        """An event of the last item."""
        own = {} if "item" in fields else {"item_id": self._items[-1]["id"]}
        return self._event(kind, output_index=len(self._items) - 1, **own, **fields)

    def _event(self, kind: str, **fields: Any) -> str:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)
