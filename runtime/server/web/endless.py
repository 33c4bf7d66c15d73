"""Streams that have no end of their own. They end with the server, which would wait for them otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager


class Endless:
    """The endless streams of a server."""

    def __init__(self) -> None:
        self.stopped = False
        self._open = 0

    @contextmanager
    def stream(self) -> Iterator[None]:
        """In here one goes on. It looks at ``stopped`` every second."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def stop(self) -> int:
        """The server ends. Returns how many streams end by themselves now."""
        self.stopped = True
        return self._open
