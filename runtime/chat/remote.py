"""A server answers, by OpenAI's interface."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import openai

from ...tiering.errors import ServerError
from ..serving.text.replies import Said
from .partner import Took

_OURS = "penstock"
_EXTRA = ("top_k", "min_p", "repetition_penalty")
"""Fields that OpenAI's own interface does not have; most other servers do."""
_PATIENCE = 30.0
"""Seconds for a server to say which models it has."""


class RemotePartner:
    """The model that a server has. Use ``connect``."""

    def __init__(self, client: openai.AsyncOpenAI, name: str, wanted: Mapping[str, Any], *, ours: bool) -> None:
        """``wanted``: how tokens are chosen, by the names of Sampling, and ``seed``, ``stop`` and ``max_tokens``;
        ``ours``: it is a server of penstock."""
        self.name, self.latest = name, None
        self._client = client
        given = {key: value for key, value in wanted.items() if value is not None and value != []}
        self._seed = given.pop("seed", None)
        self._extra = {key: given.pop(key) for key in _EXTRA if key in given}
        if ours:
            given["prompt_cache_retention"] = "24h"  # what is said next begins with it
        self._given = given

    latest: Took | None

    async def answer(self, messages: Sequence[Mapping[str, str]], again: int) -> AsyncGenerator[Said, None]:
        """Yield the answer. Raises ServerError."""
        asked = time.perf_counter()
        first, ending, usage, pieces = 0.0, None, None, 0
        given = self._given if self._seed is None else self._given | {"seed": self._seed + again}
        sent: Any = [dict(message) for message in messages]
        try:
            stream = await self._client.chat.completions.create(
                model=self.name,
                messages=sent,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=self._extra,
                **given,
            )
            async with stream:
                async for chunk in stream:
                    usage = chunk.usage or usage
                    for choice in chunk.choices[:1]:
                        ending = choice.finish_reason or ending
                        for piece in _pieces(choice.delta):
                            first, pieces = first or time.perf_counter() - asked, pieces + 1
                            yield piece
        except openai.OpenAIError as error:
            raise _failure(error, str(self._client.base_url)) from error
        finally:
            self.latest = _took(usage, pieces, first, time.perf_counter() - asked, ending)

    def about(self) -> list[str]:
        """Where it is."""
        return [f"{self.name} at {self._client.base_url}"]


def connect(url: str, name: str | None, key: str | None, wanted: Mapping[str, Any]) -> RemotePartner:
    """The model called ``name``, or the first one, of the server at ``url``. Raises ServerError."""
    base = url.rstrip("/")
    try:
        base += "" if urlsplit(url).path.strip("/") else "/v1"
        with openai.OpenAI(base_url=base, api_key=key or "-", max_retries=0, timeout=_PATIENCE) as asking:
            models = asking.models.list().data
        client = openai.AsyncOpenAI(base_url=base, api_key=key or "-", max_retries=0, timeout=None)
    except (openai.OpenAIError, ValueError) as error:
        raise _failure(error, base) from error
    names = [model.id for model in models]
    if not names:
        raise ServerError(f"{base} has no models")
    if name is not None and name not in names:
        raise ServerError(f"{base} has no model {name}; it has: {', '.join(names)}")
    chosen = name or names[0]
    ours = next((model.owned_by == _OURS for model in models if model.id == chosen), False)
    return RemotePartner(client, chosen, wanted, ours=ours)


def _pieces(delta: Any) -> list[Said]:
    reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
    found = [Said("reasoning", reasoning)] if isinstance(reasoning, str) and reasoning else []
    return [*found, *([Said("content", delta.content)] if delta.content else [])]


def _took(usage: Any, pieces: int, first: float, last: float, ending: str | None) -> Took:
    if usage is None:
        return Took(0, 0, pieces, first, last, ending)
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    return Took(usage.prompt_tokens, cached, usage.completion_tokens, first, last, ending)


def _failure(error: Exception, base: str) -> ServerError:
    if isinstance(error, openai.APIConnectionError):
        return ServerError(f"no server answers at {base}; start one: penstock serve MODEL")
    if isinstance(error, openai.AuthenticationError):
        return ServerError(f"{base} wants a key: --api-key, or PENSTOCK_API_KEY")
    return ServerError(f"{base} refuses: {' '.join(str(error).split())}")
