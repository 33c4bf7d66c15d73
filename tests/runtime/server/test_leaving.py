"""Clients that go away: their work stops, wherever it is, and nobody else's."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.support.chat_models import byte_tokenizer
from tests.support.servers import Served, serving, until

LONG = {"model": "tiny", "prompt": "abc", "max_tokens": 900, "logit_bias": {"2": -100}}
"""An answer that takes seconds."""
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", LONG),
    ("/v1/completions", {**LONG, "stream": True}),
    ("/v1/completions", {**LONG, "n": 3}),
    (
        "/v1/messages",
        {"model": "tiny", "max_tokens": 900, "messages": [{"role": "user", "content": "x"}], "stream": True},
    ),
    ("/api/generate", {"model": "tiny", "prompt": "x", "options": {"num_predict": 900}}),
]


@pytest.fixture
def small(chat_folder: Path, store: Path) -> Iterator[Served]:
    """A server that answers one request at a time, and lets two wait."""
    with serving(chat_folder, store, byte_tokenizer(), rows=1, queue=2) as server:
        yield server


def begin(server: Served, path: str, body: dict[str, Any]) -> socket.socket:
    """Send a request; the connection, of which nothing has been read."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    found = connection.sock
    connection.sock = None
    return found


def counts(server: Served) -> tuple[int, int]:
    found = server.engine.counts()
    return found["running"], found["waiting"]


@pytest.mark.parametrize(("path", "body"), FORMS)
def test_an_answer_stops_when_its_client_goes_away(server: Served, path: str, body: dict[str, Any]):
    with begin(server, path, body):
        until(lambda: counts(server)[0] > 0)
        told = server.engine.tokens
    server.idle()
    assert server.engine.tokens - told < 900


def test_a_request_that_waits_leaves_the_queue_and_the_others_go_on(small: Served):
    with ExitStack() as stack:
        first = stack.enter_context(begin(small, "/v1/completions", {**LONG, "stream": True}))
        until(lambda: counts(small) == (1, 0))
        with begin(small, "/v1/completions", LONG):
            until(lambda: counts(small) == (1, 1))
        until(lambda: counts(small) == (1, 0))
        assert first.recv(16)
    small.idle()


def test_more_than_may_wait_are_refused_and_told_when_to_come_back(small: Served):
    with ExitStack() as stack:
        for number in range(3):
            stack.enter_context(begin(small, "/v1/completions", LONG))
            until(lambda number=number: sum(counts(small)) == number + 1)
        found = httpx2.post(f"{small.url}/v1/completions", json=LONG)
        assert (found.status_code, found.json()["error"]["code"]) == (429, "queue_full")
        assert int(found.headers["retry-after"]) > 0
        several = httpx2.post(f"{small.url}/v1/completions", json={**LONG, "n": 2})
        assert several.status_code == 429
        assert counts(small) == (1, 2)
    small.idle()


def test_one_that_fails_leaves_the_others_alone(server: Served):
    wanted = httpx2.post(f"{server.url}/v1/completions", json={**LONG, "max_tokens": 60, "temperature": 0}).json()
    with begin(server, "/v1/completions", {**LONG, "max_tokens": 60, "temperature": 0}) as other:
        until(lambda: counts(server)[0] == 1)
        broken = {**LONG, "response_format": {"type": "grammar", "grammar": 'start: "x" start "y"'}}
        assert httpx2.post(f"{server.url}/v1/completions", json=broken).status_code == 400
        reply = http.client.HTTPResponse(other)
        reply.begin()
        assert json.load(reply)["choices"] == wanted["choices"]


def test_an_engine_that_is_closed_says_so(small: Served):
    with begin(small, "/v1/completions", {**LONG, "stream": True}) as open_stream:
        until(lambda: counts(small) == (1, 0))
        small.engine.close()
        reply = http.client.HTTPResponse(open_stream)
        reply.begin()
        events = [line for line in reply.read().decode().splitlines() if line.startswith("data: ")]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "closed"
    assert httpx2.post(f"{small.url}/v1/completions", json=LONG).status_code == 503
    health = httpx2.get(f"{small.url}/health")
    assert (health.status_code, health.json()["models"]) == (503, {"tiny": "this engine was closed"})
