"""Endpoints whose errors are written as their interface writes them."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .errors import ApiError, api_error
from .replies import ErrorBody

Endpoint = Callable[[Request], Awaitable[Response]]

_UNREAD = (408, 413)
"""After these a part of the body is left, which nobody will read."""


@dataclass(frozen=True, slots=True)
class Path:
    """A path of an interface. ``body`` is what a request has to bring. The endpoint's docstring says what it does."""

    method: str
    path: str
    endpoint: Endpoint
    body: type[BaseModel] | None = None


def routes_of(paths: Sequence[Path], body: ErrorBody) -> list[Route]:
    """The routes of ``paths``. Errors are written by ``body``."""
    return [Route(each.path, guard(each.endpoint, body), methods=[each.method]) for each in paths]


_log = logging.getLogger("penstock.server")


def guard(endpoint: Endpoint, body: ErrorBody) -> Endpoint:
    """``endpoint``, whose errors become answers, written by ``body``."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            return error_reply(error, body)

    return guarded


def error_reply(error: BaseException, body: ErrorBody) -> Response:
    """The answer of an error."""
    found = note_error(error)
    headers = {} if found.retry_after is None else {"retry-after": str(found.retry_after)}
    if found.status in _UNREAD:
        headers["connection"] = "close"
    return JSONResponse(body(found), found.status, headers)


def note_error(error: BaseException) -> ApiError:
    """Return what clients are told of ``error``. The log says what they are not told."""
    found = api_error(error)
    if found.status == 500:
        _log.error("a request failed", exc_info=error)
    return found
