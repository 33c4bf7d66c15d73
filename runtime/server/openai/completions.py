"""``/v1/completions``: texts go on."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...serving.text.chats import encode_text
from ...serving.text.replies import Said
from ..answers.asking import Answers, Question, Step
from ..answers.served import ServedModel
from ..answers.service import client_of, service_of
from ..answers.talking import mask_of
from ..web.bodies import read_body
from ..web.endpoints import error_reply
from ..web.replies import EventReply, WaitingReply, event
from .requests import CompletionRequest
from .shared import DONE, LEAST, error_body, failed_event, keeps_prompt, new_id, sampling_of, usage_of

TOKENS = 16
"""New tokens where a request does not say how many, as OpenAI has it."""


async def complete(request: Request) -> Response:
    """Go on with texts."""
    service = service_of(request)
    body = await read_body(request, CompletionRequest, service.most_body)
    served = service.find(body.model)
    if body.logprobs is not None:
        await asyncio.to_thread(served.grammars.prepare)
    prompts = await asyncio.to_thread(
        lambda: [each if isinstance(each, list) else encode_text(served.tokenizer, each) for each in body.prompts]
    )
    form = body.response_format.form() if body.response_format else None
    mask, sampling = await mask_of(served, form), sampling_of(served, body)
    answers = Answers(
        served,
        *(
            Question(
                prompt=prompt,
                max_tokens=body.max_tokens or TOKENS,
                sampling=sampling,
                seed=body.seed,
                count=body.n or 1,
                stops=body.stops,
                top_logprobs=body.logprobs,
                mask=mask,
                client=client_of(request),
                keep=keeps_prompt(body),
            )
            for prompt in prompts
        ),
    )
    before = [
        each if isinstance(each, str) else served.tokenizer.decode(each)
        for each in body.prompts
        for _ in range(body.n or 1)
    ]
    writer = _Writer(served, answers, body, before if body.echo else [""] * len(before))
    if body.stream:
        return EventReply(
            writer.events(), failed_event, answers.close, ping=": ping\n\n", media_type="text/event-stream"
        )
    return WaitingReply(writer.whole(), partial(error_reply, body=error_body), answers.close)


class _Writer:
    """Writes the answers to one request. ``before`` is said before each."""

    def __init__(self, served: ServedModel, answers: Answers, body: CompletionRequest, before: list[str]) -> None:
        self._served, self._answers, self._before = served, answers, before
        self._logprobs = body.logprobs is not None
        self._usage = body.stream_options is not None and body.stream_options.include_usage
        self._head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        self._lengths = [0] * answers.count

    async def whole(self) -> Mapping[str, Any]:
        """The object, when all is there."""
        texts, finishes = [*self._before], [""] * len(self._before)
        logprobs: list[dict[str, list[Any]]] = [_no_logprobs() for _ in texts]
        async for step in self._answers.steps():
            texts[step.index] += _text(step)
            finishes[step.index] = step.ending or ""
            for key, values in (self._token_logprobs(step) or {}).items():
                logprobs[step.index][key] += values
        choices = [
            {"index": index, "text": text, "logprobs": told if self._logprobs else None, "finish_reason": finish}
            for index, (text, told, finish) in enumerate(zip(texts, logprobs, finishes, strict=True))
        ]
        usage, timings = usage_of(self._answers), self._answers.clock.report()
        return {**self._head, "choices": choices, "usage": usage, "timings": timings}

    async def events(self) -> AsyncGenerator[str, None]:
        """The chunks of a stream."""
        async with aclosing(self._answers.steps()) as steps:
            for index, text in enumerate(self._before):
                if text:
                    yield self._chunk(index, text)
            async for step in steps:
                text, logprobs = _text(step), self._token_logprobs(step)
                if text or logprobs or step.ending is not None:
                    yield self._chunk(step.index, text, logprobs, step.ending)
        if self._usage:
            yield event({**self._head, "choices": [], "usage": usage_of(self._answers)})
        yield DONE

    def _chunk(self, index: int, text: str, logprobs: Any = None, finish: str | None = None) -> str:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return event({**self._head, "choices": [choice], **({"usage": None} if self._usage else {})})

    def _token_logprobs(self, step: Step) -> dict[str, list[Any]] | None:
        if not self._logprobs:
            return None
        token, _ = self._served.token_text(step.token.id)
        offset, self._lengths[step.index] = self._lengths[step.index], self._lengths[step.index] + len(token)
        return {
            "tokens": [token],
            "token_logprobs": [max(LEAST, step.token.logprob or 0.0)],
            "top_logprobs": [{self._served.token_text(each)[0]: max(LEAST, value) for each, value in step.token.top}],
            "text_offset": [offset],
        }


def _no_logprobs() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _text(step: Step) -> str:
    return "".join(piece.text for piece in step.pieces if isinstance(piece, Said))
