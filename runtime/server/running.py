"""The process of a server: its socket, its signals, its end."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...tiering.errors import ServerError
from .web.endless import Endless

DRAIN = 30
"""Seconds that answers have to end after SIGTERM."""
HEADERS = 30.0
"""Seconds for the headers of a request to arrive."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for connections; port 0 is any that is free. Raises ServerError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.create_server(address[:2], family=family, backlog=2048)
    except socket.gaierror as error:
        raise ServerError(f"cannot listen on {host}: {error.strerror}; choose another --host") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ServerError(f"cannot listen on {host}, port {port}: {reason}; choose another --port") from error
    except UnicodeError as error:
        raise ServerError(f"cannot listen on {host}: {error}; choose another --host") from error
    return found


def config_for(app: ASGIApp) -> uvicorn.Config:
    """How uvicorn serves ``app``."""
    return uvicorn.Config(
        app,
        http=_Impatient,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=DRAIN,
    )


def run_server(app: ASGIApp, waiting: socket.socket, say: Callable[[str], None], endless: Endless) -> None:
    """Serve ``app`` until SIGTERM or Ctrl-C. Answers that are being given have time to end; ``say`` tells people so.
    ``endless`` streams end.

    Raises KeyboardInterrupt after Ctrl-C.
    """
    server = _Server(config_for(app), say, endless)
    server.run(sockets=[waiting])
    if server.interrupted:
        raise KeyboardInterrupt("stopped")


class _Impatient(H11Protocol):
    """A connection that ends when it is opened, or a request is begun, and no headers arrive."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """It says something."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADERS, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    """A server that returns after a signal: there is more to be closed than its sockets."""

    def __init__(self, config: uvicorn.Config, say: Callable[[str], None], endless: Endless) -> None:
        super().__init__(config)
        self._say, self._endless, self.interrupted = say, endless, False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at signals. uvicorn's own ends with the signal once more."""
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at once if asked a second time by Ctrl-C."""
        count = len(self.server_state.tasks) - self._endless.stop()
        if not self.should_exit and count > 0:
            self._say(f"penstock: stopping; {count} requests have {DRAIN} s to end, or until Ctrl-C")
        self.interrupted = self.interrupted or sig == signal.SIGINT
        super().handle_exit(sig, frame)
