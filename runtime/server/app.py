"""The application: all interfaces over the models that are served."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import states
from .answers.meters import Meters
from .answers.served import ServedModel
from .answers.service import Service
from .anthropic import messages as anthropic
from .dashboard import pages
from .dashboard.feed import Feed
from .described import describe
from .guarding import Guarded
from .ollama import routes as ollama
from .openai import routes as openai
from .openai.shared import error_body
from .states import ModelGauges
from .web.endless import Endless
from .web.errors import ApiError

MOST_BODY = 32 * 2**20
"""Bytes of a request."""


def make_app(
    models: Sequence[ServedModel],
    meters: Meters,
    *,
    key: str | None = None,
    loopback: bool = True,
    most_body: int = MOST_BODY,
    endless: Endless | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ASGIApp:
    """The application. ``meters`` are those of ``models``. ``key`` and ``loopback`` are as for Guarded. ``endless``
    ends streams when the server ends. ``settings`` are shown to people."""
    app = Starlette(
        routes=[
            *pages.routes,
            *states.routes,
            *openai.routes,
            *anthropic.routes,
            *ollama.routes,
            Route("/openapi.json", _description),
        ],
        exception_handlers={HTTPException: _no_such_path},
    )
    service = Service(tuple(models), meters, most_body, endless or Endless(), settings or {})
    app.state.service, app.state.feed = service, Feed(service)
    meters.registry.register(ModelGauges(models))
    return Guarded(app, key, loopback=loopback, open_paths=states.OPEN_PATHS | pages.OPEN_PATHS)


async def _description(request: Request) -> Response:
    return JSONResponse(_describe_all())


@cache
def _describe_all() -> dict[str, Any]:
    return describe([*states.paths, *openai.paths, *anthropic.paths, *ollama.paths])


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(error_body(ApiError(error.status_code, message)), error.status_code, error.headers)
