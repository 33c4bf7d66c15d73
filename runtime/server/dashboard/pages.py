"""The files of the page. They are the same for everybody, need no key, and load nothing from elsewhere."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..openai.shared import error_body
from ..web.endpoints import guard
from .feed import look_on

FOLDER = Path(__file__).with_name("static")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PLACES = {"/": FOLDER / "index.html"} | {
    f"/dashboard/{file.name}": file for file in sorted(FOLDER.iterdir()) if file.suffix in (".css", ".js", ".svg")
}
OPEN_PATHS = frozenset(_PLACES)
"""What needs no key."""

_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Nothing but the files of this folder runs, and text of a model never becomes a part of the page."""


async def show(request: Request) -> Response:
    """A file of the page."""
    file = _PLACES[request.url.path]
    return Response(file.read_bytes(), media_type=_TYPES[file.suffix], headers=_HEADERS)


routes = [
    *(Route(path, show) for path in _PLACES),
    Route("/dashboard/events", guard(look_on, error_body)),
]
