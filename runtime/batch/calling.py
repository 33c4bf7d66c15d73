"""Calls the server's application from inside of the process: what answers clients answers batches, errors too."""

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp

from ..server.openai.shared import error_body
from ..server.web.endpoints import note_error
from ..server.web.replies import Aborted


async def call(app: ASGIApp, path: str, body: bytes) -> tuple[int, bytes]:
    """Post ``body`` to ``path`` of ``app``. Returns the status and the body of the answer."""
    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "client": ("batch", 0),
        "server": ("localhost", 0),
    }
    rest = [{"type": "http.request", "body": body, "more_body": False}]
    status, pieces = 0, bytearray()

    async def receive() -> dict[str, Any]:
        if rest:
            return rest.pop()
        await asyncio.Event().wait()  # nobody goes away
        raise AssertionError

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            pieces.extend(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Aborted as aborted:  # it had said that all is well, so that clients wait
        found = note_error(aborted.__cause__ or aborted)
        return found.status, json.dumps(error_body(found)).encode()
    return status, bytes(pieces)
