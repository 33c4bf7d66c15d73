"""A time limit for what a fuzzer plays."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class TookTooLong(BaseException):
    """The block took longer than it may."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TookTooLong in the main thread after ``seconds``."""

    def over(*_: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
