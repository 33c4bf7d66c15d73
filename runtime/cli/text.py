"""The text that a model is to read: its file, its tokens, and how many of them it sees at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ...tiering.errors import CheckpointError, TextError
from ...tiering.units import MiB, format_size
from ..checkpoints.files.failures import is_failure, reason

WINDOW = 512
"""Tokens that the model sees at a time: enough for its predictions, and little memory for activations."""
_LONGEST = 256 * MiB
"""Of a text, which is all in memory: some 60 million tokens."""


def read_text(name: str) -> str:
    """The text in the file ``name``, UTF-8; a pipe, as the shell makes them, will do. Raises TextError."""
    try:
        with open(Path(name).expanduser(), "rb") as file:
            raw = file.read(_LONGEST + 1)
        if len(raw) > _LONGEST:
            raise TextError(f"{name} has more than {format_size(_LONGEST)}; name a shorter text")
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{name} is no text in UTF-8 ({error.reason} at byte {error.start}); name another file"
        ) from error
    except OSError as error:
        raise TextError(f"the text {name} cannot be read: {error.strerror}; name another file") from error
    except ValueError as error:  # a name that no file can have
        raise TextError(f"the text {name!r} cannot be read: {error}; name another file") from error


@contextmanager
def tokenizing(tokenizer: Any) -> Iterator[None]:
    """Around calls of ``tokenizer``: its failures, which are of any kind, become a CheckpointError."""
    try:
        yield
    except BaseException as error:
        if not is_failure(error):
            raise
        raise CheckpointError(
            f"the tokenizer of {tokenizer.name_or_path} cannot read the text ({reason(error)}); fetch it again"
        ) from error


def encode(tokenizer: Any, content: str, most: int) -> list[int]:
    """The first tokens of ``content``, at most ``most``. No more of it is tokenized than needed."""
    characters = 8 * most
    while True:
        with tokenizing(tokenizer):
            ids: list[int] = tokenizer(content[:characters], add_special_tokens=False)["input_ids"]
        # The last of them may be another one when more of the text is known.
        if len(ids) > most or characters >= len(content):
            return ids[:most]
        characters *= 2


def beginning(tokenizer: Any) -> list[int]:
    """The tokens that every text of this model begins with: at most one."""
    with tokenizing(tokenizer):
        special: list[int] = tokenizer("")["input_ids"]
    return special[:1] if special[:1] == [tokenizer.bos_token_id] else []


def window_size(wanted: int | None, first: int, positions: int | None, option: str) -> int:
    """Tokens that the model sees at a time, with the ``first`` ones that every text begins with. ``wanted`` came from
    ``option``, ``positions`` are the most that the model has. Raises BadParameter."""
    if wanted is not None and positions is not None and wanted > positions:
        raise typer.BadParameter(f"the model has {positions} positions", param_hint=option)
    size = wanted or min(WINDOW, positions or WINDOW)
    return max(size, first + 1)
