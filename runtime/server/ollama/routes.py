"""``/api/chat``, ``/api/generate``, ``/api/tags``, ``/api/show``, ``/api/version``."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...serving.requests import Sampling
from ...serving.text.chats import encode_text
from ..answers.asking import Answers, Question
from ..answers.served import ServedModel
from ..answers.service import client_of, service_of
from ..answers.talking import mask_of, question_of
from ..web.bodies import read_body
from ..web.endpoints import Path, error_reply, routes_of
from ..web.replies import EventReply, WaitingReply
from .requests import ChatRequest, GenerateRequest, ShowRequest, TextRequest
from .writing import Writer, error_body, failed_line, in_chat, in_generate


async def chat(request: Request) -> Response:
    """Go on with a chat."""
    service = service_of(request)
    body = await read_body(request, ChatRequest, service.most_body)
    served = service.find(body.model)
    question = await question_of(served, body.talk(), sampling=_sampling(served, body), **_options(request, body))
    answers = Answers(served, question)
    return _reply(body, answers, Writer(served, answers, in_chat))


async def generate(request: Request) -> Response:
    """Answer a prompt. Raw ones, and those to a model without a chat template, go on as they are."""
    service = service_of(request)
    body = await read_body(request, GenerateRequest, service.most_body)
    served = service.find(body.model)
    sampling, options = _sampling(served, body), _options(request, body)
    if body.raw or not served.chat.exists:
        prompt = await asyncio.to_thread(encode_text, served.tokenizer, (body.system or "") + body.prompt)
        question = Question(prompt=prompt, sampling=sampling, mask=await mask_of(served, body.form()), **options)
    else:
        question = await question_of(served, body.talk(), sampling=sampling, **options)
    answers = Answers(served, question)
    return _reply(body, answers, Writer(served, answers, in_generate))


async def list_models(request: Request) -> Response:
    """The models of this server."""
    return JSONResponse({"models": [_listed(served) for served in service_of(request).models]})


async def show(request: Request) -> Response:
    """One of them."""
    service = service_of(request)
    served = service.find((await read_body(request, ShowRequest, service.most_body)).model)
    tools = ["tools"] if served.chat.mentions("tools") and served.response_template is not None else []
    family = served.family
    return JSONResponse({
        "template": served.chat.text,
        "details": _details(served),
        "model_info": {
            "general.architecture": family,
            f"{family}.context_length": served.positions,
            f"{family}.vocab_size": served.vocabulary,
        },
        "capabilities": ["completion", *tools],
        "modified_at": _time(served),
    })  # fmt: skip


async def tell_version(request: Request) -> Response:
    """That of penstock."""
    return JSONResponse({"version": version("penstock")})


def _reply(body: TextRequest, answers: Answers, writer: Writer) -> Response:
    if body.stream is False:
        return WaitingReply(writer.whole(), partial(error_reply, body=error_body), answers.close)
    media_type = "application/x-ndjson"
    return EventReply(writer.lines(), failed_line, answers.close, ping=writer.ping(), media_type=media_type)


def _options(request: Request, body: TextRequest) -> dict[str, Any]:
    most = body.options.num_predict
    return {
        "max_tokens": most if most is not None and most > 0 else None,
        "seed": body.options.seed,
        "stops": body.options.stops,
        "client": client_of(request),
    }


def _sampling(served: ServedModel, body: TextRequest) -> Sampling:
    options = body.options
    return served.sampling(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repeat_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
    )


def _listed(served: ServedModel) -> dict[str, Any]:
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": _time(served),
        "size": served.size,
        "digest": "",
        "details": _details(served),
    }


def _details(served: ServedModel) -> dict[str, Any]:
    family = served.family
    return {
        "format": "penstock",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": "",
    }


def _time(served: ServedModel) -> str:
    return datetime.fromtimestamp(served.created, UTC).isoformat()


paths = (
    Path("POST", "/api/chat", chat, ChatRequest),
    Path("POST", "/api/generate", generate, GenerateRequest),
    Path("POST", "/api/show", show, ShowRequest),
    Path("GET", "/api/tags", list_models),
    Path("GET", "/api/version", tell_version),
)
routes = routes_of(paths, error_body)
