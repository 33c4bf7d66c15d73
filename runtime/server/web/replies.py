"""Answers that take long: work stops when the client goes away; a client that waits hears something every 10 s."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError

PING = 10.0
"""Seconds after which a client that waits hears something. Clients and proxies end connections that are silent."""

ErrorBody = Callable[[ApiError], dict[str, Any]]
"""How an interface writes errors."""


class Aborted(Exception):
    """The answer cannot go on, and its status is sent already: the connection ends, so that the client notices."""


class WaitingReply(Response):
    """A JSON object that takes long to compute. White space is sent before it, once it took ten seconds."""

    def __init__(
        self,
        work: Coroutine[Any, Any, Mapping[str, Any]],
        failed: Callable[[BaseException], Response],
        close: Callable[[], None],
    ) -> None:
        """``failed`` makes the answer of an error. ``close`` is called at the end, whatever happens."""
        self.status_code = 200
        self.background = None
        self._work, self._failed, self._close = work, failed, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _while_connected(receive, self._reply(scope, receive, send))
        finally:
            self._close()
            self._work.close()

    async def _reply(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(self._work)
        started = False
        try:
            while not (await asyncio.wait([task], timeout=PING))[0]:
                if not started:
                    await send(_head(200, b"application/json"))
                    started = True
                await send(_piece(b" "))
        finally:
            await _end(task)
        error = task.exception()
        if not started:
            reply = JSONResponse(task.result()) if error is None else self._failed(error)
            await reply(scope, receive, send)
            return
        if error is not None:
            self._failed(error)
            raise Aborted(str(error)) from error
        await send(_piece(bytes(JSONResponse(task.result()).body), last=True))


class EventReply(Response):
    """A stream of events, or of lines."""

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        failed: Callable[[BaseException], str],
        close: Callable[[], None],
        *,
        ping: str,
        media_type: str,
    ) -> None:
        """``ping`` is sent where nothing else was for ten seconds. ``failed`` writes the event of an error.
        ``close`` is called at the end, whatever happens."""
        self.status_code = 200
        self.background = None
        self._events, self._failed, self._close = events, failed, close
        self._ping, self._media_type = ping, media_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _while_connected(receive, self._reply(send))
        finally:
            self._close()

    async def _reply(self, send: Send) -> None:
        await send(
            _head(200, self._media_type.encode(), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
        )
        await send(_piece(self._ping.encode()))  # from acceptance on
        task: asyncio.Future[str] | None = None
        try:
            while True:
                task = asyncio.ensure_future(anext(self._events))
                while not (await asyncio.wait([task], timeout=PING))[0]:
                    await send(_piece(self._ping.encode()))
                await send(_piece(task.result().encode("utf-8", "replace")))
        except StopAsyncIteration:
            pass
        except Exception as error:
            await send(_piece(self._failed(error).encode("utf-8", "replace")))
        finally:
            if task is not None:
                await _end(task)
            await self._events.aclose()
        await send(_piece(b"", last=True))


def event(document: Mapping[str, Any], name: str | None = None) -> str:
    """A server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work``, and stop it when the client goes away."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        await _end(gone)
        await _end(task)


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel ``task``, and wait until it has ended."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


def _head(status: int, media_type: bytes, *more: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", media_type), *more]}


def _piece(body: bytes, *, last: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": not last}
