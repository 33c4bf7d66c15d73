"""The output of commands: results on stdout, everything else on stderr, errors in one line, progress on a terminal."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .quick_imports import import_less, uncollected

INTERRUPTED = 130
"""Exit code after Ctrl-C, by the convention of shells."""
BROKEN_PIPE = 141
"""Exit code when the reader of our output has gone, as SIGPIPE gives it."""


def print_json(document: object) -> None:
    """Print one JSON object on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str), flush=True)


def say(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


def fail(message: object) -> None:
    """Print the one line of an error on stderr."""
    say(f"penstock: error: {' '.join(str(message).split())}")


def drop_output() -> None:
    """Drop the rest of stdout, whose reader has gone, so that Python does not complain when it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextmanager
def importing() -> Iterator[None]:
    """Import in here what needs transformers: quietly, and fast where the process is ours."""
    with uncollected():
        quiet_libraries()
        yield


def quiet_libraries() -> None:
    """Import transformers, and keep its messages and those of the hub off the terminal."""
    quiet_imports()
    import transformers

    import_less()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def quiet_imports() -> None:
    """Have transformers and the hub quiet if they come to be imported. Nothing is imported for that."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")


@contextmanager
def waiting(line: str) -> Iterator[Callable[[], None]]:
    """Show a spinner with ``line`` on stderr, where that is a terminal. The yielded function removes it early."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console

    with Console(stderr=True).status(line) as status:
        yield status.stop
