"""Asynchronous scatter reads: one interface over the ways of reading a file, and the way with threads."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from .directio import DirectFile, Segment, Transfer

Then = Callable[[Exception | None], None]
"""Takes the outcome of a read: None, or what went wrong."""

_mark = threading.local()


class BackendUnavailable(Exception):
    """This way of reading does not work on this machine; the message says why and what would change that."""


class ReaderClosed(ValueError):
    """A read was submitted to a reader that is closed."""


class Reader(Protocol):
    """Performs reads, some of them at the same time. Every method may be called from any thread, ``then`` included."""

    def submit(self, file: DirectFile, segments: Sequence[Segment], then: Then) -> None:
        """Start to fill every segment's buffer; segments lie one after the other in the file without a gap.

        ``then`` is called once, on a thread of the reader, when nothing will write to the buffers any more: with None
        when they are filled, else with ShortRead when the file ends before, OSError when the drive fails, ValueError
        for a buffer that is not aligned in memory; their content is undefined then. It should not take long and must
        not raise. Reads beyond the reader's depth wait for their turn.

        Raises, and never calls ``then``: ReaderClosed, and what ``DirectFile.begin`` raises.
        """

    def close(self) -> None:
        """Let what was submitted land, and stop. Idempotent; on a thread of a reader it does not wait for that."""


class Threads:
    """Reads with up to ``depth`` threads, each in one ``preadv`` at a time."""

    def __init__(self, depth: int) -> None:
        self._pool = ThreadPoolExecutor(depth, thread_name_prefix="penstock-io", initializer=mark_thread)

    def submit(self, file: DirectFile, segments: Sequence[Segment], then: Then) -> None:
        """As Reader.submit."""
        transfer = file.begin(segments)
        try:
            self._pool.submit(_perform, transfer, then)
        except RuntimeError as error:
            transfer.end()
            raise ReaderClosed("this reader is closed") from error

    def close(self) -> None:
        """As Reader.close."""
        self._pool.shutdown(wait=not on_reader_thread())


def _perform(transfer: Transfer, then: Then) -> None:
    problem: Exception | None = None
    try:
        transfer.read()
    except Exception as error:  # handed to whoever asked
        problem = error
    deliver(then, problem)


def deliver(then: Then, problem: Exception | None) -> None:
    """Call ``then``. What it raises is a bug, reported as a thread's own; the reader goes on."""
    try:
        then(problem)
    except BaseException as bug:
        threading.excepthook(threading.ExceptHookArgs((type(bug), bug, bug.__traceback__, threading.current_thread())))


def mark_thread() -> None:
    """The calling thread is one of a reader."""
    _mark.reader = True


def on_reader_thread() -> bool:
    """Whether the calling thread is one of a reader, so that waiting for reads on it could wait for itself.

    The garbage collector may run on any thread, and close from there what nobody uses any more.
    """
    return getattr(_mark, "reader", False)
