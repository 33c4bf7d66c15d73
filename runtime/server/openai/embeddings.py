"""``/v1/embeddings``."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ...serving.requests import Passage
from ...serving.text.chats import encode_text
from ..answers.served import ServedModel
from ..answers.service import client_of, service_of
from ..web.bodies import Body, read_body
from ..web.endpoints import error_reply
from ..web.errors import ApiError
from ..web.replies import WaitingReply
from .requests import HARMLESS, Ids
from .shared import error_body

BESIDE = 8
"""Texts of one request that are computed at a time: others have their turn between them."""


class EmbeddingRequest(Body):
    """Texts, or their tokens."""

    harmless: ClassVar[frozenset[str]] = HARMLESS
    model: str | None = None
    input: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=2048)]
        | Annotated[list[Ids], Field(min_length=1, max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts, one or several."""
        given: Any = self.input
        several = isinstance(given, list) and not isinstance(given[0], int)
        found: list[str | list[int]] = given if several else [given]
        return found


async def embed(request: Request) -> Response:
    """Compute the embeddings of texts."""
    service = service_of(request)
    body = await read_body(request, EmbeddingRequest, service.most_body)
    served = service.find(body.model)
    if body.dimensions not in (None, served.width):
        raise ApiError(400, f"the model's embeddings have {served.width} dimensions", param="dimensions")
    prompts = await asyncio.to_thread(
        lambda: [each if isinstance(each, list) else encode_text(served.tokenizer, each) for each in body.inputs]
    )
    passages = [Passage(prompt, served.pooling, client_of(request)) for prompt in prompts]
    work = _embeddings(served, passages, base64_=body.encoding_format == "base64")
    return WaitingReply(work, partial(error_reply, body=error_body), _nothing)


async def _embeddings(served: ServedModel, passages: Sequence[Passage], *, base64_: bool) -> Mapping[str, Any]:
    free = asyncio.Semaphore(BESIDE)

    async def one(passage: Passage) -> Any:
        async with free:
            found = (await served.engine.embed(passage)).numpy().astype("<f4")
        return base64.b64encode(found.tobytes()).decode() if base64_ else found.tolist()

    tasks = [asyncio.ensure_future(one(passage)) for passage in passages]
    try:
        found = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    tokens = sum(len(passage.prompt) for passage in passages)
    return {
        "object": "list",
        "model": served.name,
        "data": [{"object": "embedding", "index": at, "embedding": each} for at, each in enumerate(found)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _nothing() -> None:
    """What is computed ends with the task that waits for it."""
