"""Clients that connect, and do not behave."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.support.servers import Served


@pytest.fixture
def connect(server: Served) -> Iterator[object]:
    """Opens connections."""
    address = urlsplit(server.url)
    with ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))


def test_headers_that_never_end_end_the_connection(connect, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("penstock.runtime.server.running.HEADERS", 0.01)
    silent, slow = connect(), connect()
    slow.sendall(b"GET /health HTTP/1.1\r\nHost: local")
    assert (silent.recv(1), slow.recv(1)) == (b"", b"")


def test_a_second_request_has_as_long(connect, server: Served, monkeypatch: pytest.MonkeyPatch):
    slow = connect()
    slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += slow.recv(4000)
    monkeypatch.setattr("penstock.runtime.server.running.HEADERS", 0.01)
    slow.sendall(b"GET /health HTTP/1.1\r\n")
    assert slow.recv(1) == b""


def test_a_body_that_never_ends_is_an_error(connect, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("penstock.runtime.server.web.bodies.SECONDS", 0.01)
    slow = connect()
    slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert slow.recv(4000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("sent", [b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000])
def test_what_is_no_request_is_an_error(connect, sent: bytes):
    odd = connect()
    odd.sendall(sent)
    assert odd.recv(4000).startswith(b"HTTP/1.1 400")


def test_a_request_without_a_host_is_refused(connect):
    odd = connect()
    odd.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    assert odd.recv(4000).startswith(b"HTTP/1.1 403")


def test_many_connections_at_a_time_leave_the_server_well(connect, server: Served):
    many = [connect() for _ in range(500)]
    for each in many[::2]:
        each.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert {each.recv(12) for each in many[::2]} == {b"HTTP/1.1 200"}
    assert httpx2.get(f"{server.url}/health").status_code == 200
