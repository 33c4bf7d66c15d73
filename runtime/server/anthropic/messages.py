"""``/v1/messages`` and ``/v1/messages/count_tokens``."""

import json
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...serving.text.replies import Piece, ToolCall
from ..answers.asking import Answers, Step
from ..answers.served import ServedModel
from ..answers.service import client_of, service_of
from ..answers.talking import question_of
from ..web.bodies import read_body
from ..web.endpoints import Path, error_reply, note_error, routes_of
from ..web.errors import ApiError
from ..web.replies import EventReply, WaitingReply, event
from .requests import CountRequest, MessagesRequest

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def create_message(request: Request) -> Response:
    """Answer messages."""
    service = service_of(request)
    body = await read_body(request, MessagesRequest, service.most_body)
    served = service.find(body.model)
    question = await question_of(
        served,
        body.talk(),
        sampling=served.sampling(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
        max_tokens=body.max_tokens,
        stops=body.stops,
        client=client_of(request),
    )
    answers = Answers(served, question)
    writer = _Writer(served, answers)
    if body.stream:
        ping = event({"type": "ping"}, "ping")
        return EventReply(writer.events(), _failed, answers.close, ping=ping, media_type="text/event-stream")
    return WaitingReply(writer.whole(), partial(error_reply, body=error_body), answers.close)


async def count_tokens(request: Request) -> Response:
    """Say how many tokens messages have."""
    service = service_of(request)
    body = await read_body(request, CountRequest, service.most_body)
    served = service.find(body.model)
    question = await question_of(served, body.talk(), sampling=served.sampling())
    return JSONResponse({"input_tokens": len(question.prompt)})


def error_body(error: ApiError) -> dict[str, Any]:
    """An error as Anthropic writes it."""
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


paths = (
    Path("POST", "/v1/messages", create_message, MessagesRequest),
    Path("POST", "/v1/messages/count_tokens", count_tokens, CountRequest),
)
routes = routes_of(paths, error_body)


def _failed(error: BaseException) -> str:
    return event(error_body(note_error(error)), "error")


class _Writer:
    """Writes one answer, as blocks of content."""

    def __init__(self, served: ServedModel, answers: Answers) -> None:
        self._answers = answers
        self._blocks: list[dict[str, Any]] = []
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": served.name,
        }

    async def whole(self) -> Mapping[str, Any]:
        """The object, when all is there."""
        last = None
        async for step in self._answers.steps():
            last = step
            for piece in step.pieces:
                for _ in self._write(piece):
                    pass
        return {**self._head, "content": self._blocks, **_ending(last), "usage": self._usage()}

    async def events(self) -> AsyncGenerator[str, None]:
        """The events of a stream."""
        start: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }
        yield event({"type": "message_start", "message": start}, "message_start")
        last = None
        async with aclosing(self._answers.steps()) as steps:
            async for step in steps:
                last = step
                for piece in step.pieces:
                    for each in self._write(piece):
                        yield each
        if self._blocks:
            yield self._stop()
        yield event({"type": "message_delta", "delta": _ending(last), "usage": self._usage()}, "message_delta")
        yield event({"type": "message_stop"}, "message_stop")

    def _write(self, piece: Piece) -> Iterator[str]:
        """Add ``piece`` to the blocks. Yields the events of that."""
        if isinstance(piece, ToolCall):
            call = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": piece.name}
            yield from self._begin({**call, "input": {}})
            self._blocks[-1]["input"] = json.loads(piece.arguments)
            yield self._delta({"type": "input_json_delta", "partial_json": piece.arguments})
            return
        key = "text" if piece.kind == "content" else "thinking"
        if not self._blocks or self._blocks[-1]["type"] != key:
            yield from self._begin({"type": key, key: "", **({"signature": ""} if key == "thinking" else {})})
        self._blocks[-1][key] += piece.text
        yield self._delta({"type": f"{key}_delta", key: piece.text})

    def _begin(self, block: dict[str, Any]) -> Iterator[str]:
        if self._blocks:
            yield self._stop()
        self._blocks.append(block)
        start = {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block}
        yield event(start, "content_block_start")

    def _delta(self, delta: Mapping[str, Any]) -> str:
        document = {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}
        return event(document, "content_block_delta")

    def _stop(self) -> str:
        return event({"type": "content_block_stop", "index": len(self._blocks) - 1}, "content_block_stop")

    def _usage(self) -> dict[str, int]:
        cached = self._answers.cached_tokens
        return {
            "input_tokens": self._answers.prompt_tokens - cached,
            "cache_read_input_tokens": cached,
            "output_tokens": self._answers.clock.tokens,
        }


def _ending(last: Step | None) -> dict[str, Any]:
    if last is not None and last.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop_string}
    return {"stop_reason": None if last is None else _REASONS.get(last.ending or ""), "stop_sequence": None}
