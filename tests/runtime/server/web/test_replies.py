"""Answers that take long."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.responses import JSONResponse

from penstock.runtime.server.web.replies import Aborted, EventReply, WaitingReply, event


class Client:
    """The other end of an ASGI application."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.gone = asyncio.Event()
        self.closed = 0
        self.on_send: Callable[[], None] = lambda: None

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.on_send()

    def close(self) -> None:
        self.closed += 1

    @property
    def body(self) -> bytes:
        return b"".join(each.get("body", b"") for each in self.sent)


def failed(error: BaseException) -> Any:
    return JSONResponse({"error": str(error)}, 418)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something is heard soon."""
    monkeypatch.setattr("penstock.runtime.server.web.replies.PING", 0.001)


async def reply(client: Client, work: Any) -> None:
    await WaitingReply(work, failed, client.close)({"type": "http"}, client.receive, client.send)


async def stream(client: Client, events: AsyncGenerator[str, None]) -> None:
    media_type = "text/event-stream"
    reply = EventReply(events, lambda error: f"error: {error}", client.close, ping=": ping\n\n", media_type=media_type)
    await reply({}, client.receive, client.send)


async def test_an_object_that_is_there_soon_is_sent_as_it_is():
    client = Client()

    async def work() -> dict[str, int]:
        return {"a": 1}

    await reply(client, work())
    assert (client.sent[0]["status"], client.body, client.closed) == (200, b'{"a":1}', 1)


async def test_an_error_that_comes_soon_has_its_status():
    client = Client()

    async def work() -> dict[str, int]:
        raise ValueError("no")

    await reply(client, work())
    assert (client.sent[0]["status"], client.body, client.closed) == (418, b'{"error":"no"}', 1)


async def test_who_waits_long_hears_white_space_before_the_object(impatient: None):
    client, heard = Client(), asyncio.Event()
    client.on_send = lambda: heard.set() if len(client.sent) > 3 else None

    async def work() -> dict[str, int]:
        await heard.wait()
        return {"a": 1}

    await reply(client, work())
    assert client.body.startswith(b"  ")
    assert json.loads(client.body) == {"a": 1}


async def test_an_error_after_white_space_ends_the_connection(impatient: None):
    client, heard = Client(), asyncio.Event()
    client.on_send = heard.set

    async def work() -> dict[str, int]:
        await heard.wait()
        raise ValueError("no")

    with pytest.raises(Aborted, match="no"):
        await reply(client, work())
    assert (client.sent[-1]["more_body"], client.closed) == (True, 1)


async def test_work_stops_when_the_client_goes_away():
    client, stopped = Client(), asyncio.Event()

    async def work() -> dict[str, int]:
        client.gone.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return {}

    await reply(client, work())
    assert (stopped.is_set(), client.sent, client.closed) == (True, [], 1)


async def test_a_stream_begins_at_once_and_is_never_silent(impatient: None):
    client, heard = Client(), asyncio.Event()
    client.on_send = lambda: heard.set() if len(client.sent) > 5 else None

    async def events() -> AsyncGenerator[str, None]:
        await heard.wait()
        yield event({"a": "é"})

    await stream(client, events())
    assert client.body.startswith(b": ping\n\n: ping\n\n")
    assert client.body.endswith('data: {"a":"é"}\n\n'.encode())
    assert (client.sent[-1]["more_body"], client.closed) == (False, 1)


async def test_an_error_is_the_last_event():
    client = Client()

    async def events() -> AsyncGenerator[str, None]:
        yield "one "
        raise ValueError("no")

    await stream(client, events())
    assert client.body == b": ping\n\none error: no"
    assert (client.sent[-1]["more_body"], client.closed) == (False, 1)


async def test_a_stream_stops_when_the_client_goes_away():
    client, stopped = Client(), asyncio.Event()

    async def events() -> AsyncGenerator[str, None]:
        try:
            yield "one"
            client.gone.set()
            await asyncio.Event().wait()
        finally:
            stopped.set()

    await stream(client, events())
    assert (stopped.is_set(), client.closed) == (True, 1)


async def test_a_client_that_has_gone_before_anything_began_leaves_nothing_open():
    client = Client()
    client.gone.set()

    async def work() -> dict[str, int]:
        await asyncio.Event().wait()
        return {}

    await reply(client, work())
    assert client.closed == 1
