"""Who may ask: those with the key; and no page of somebody else in a browser on this machine."""

import hmac
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guarded:
    """An application that refuses requests without ``key``, and those that a page of another site makes.

    ``loopback``: only this machine reaches it, so a request under another host's name comes from a page that has made
    its own name point here. ``open_paths`` need no key.
    """

    def __init__(
        self, app: ASGIApp, key: str | None, *, loopback: bool, open_paths: Collection[str] = frozenset()
    ) -> None:
        self._app, self._key, self._loopback, self._open_paths = app, key, loopback, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, message, code = refused
        kind = "authentication_error" if status == 401 else "permission_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        headers = {"www-authenticate": "Bearer"} if status == 401 else None
        await JSONResponse({"type": "error", "error": error}, status, headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = Headers(scope=scope)
        host = _name(f"//{headers.get('host', '')}")
        if self._loopback and host not in _LOOPBACK:
            return 403, f"this server answers to localhost, not to {host!r}", "wrong_host"
        origin = headers.get("origin")
        if origin is not None and _name(origin) != host:
            return 403, f"pages of {origin!r} may not ask this server", "wrong_origin"
        if (
            self._key is None
            or scope["path"] in self._open_paths
            or any(_same(key, self._key) for key in _keys(headers))
        ):
            return None
        return 401, "the API key is wrong or missing", "invalid_api_key"


def _keys(headers: Headers) -> Iterable[str]:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield key.strip()
    if "x-api-key" in headers:
        yield headers["x-api-key"]


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
