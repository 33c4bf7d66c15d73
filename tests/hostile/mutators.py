"""Mutations for a guided fuzzer that keep JSON JSON: bytes changed at random would only try the parser of JSON."""

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.hostile.mutations import mutate_document, to_json

Plainly = Callable[[bytes, int], bytes]
"""The fuzzer's own mutation of an input, to so many bytes at most."""
_SHARE = 0.6
"""How many inputs are changed as documents."""
_WIDE, _DEEP = (2, 40), (2, 10, 100)
"""Inputs are short."""


class Parts(NamedTuple):
    """An input: ``document`` is the JSON between ``before`` and ``after``."""

    before: bytes
    document: bytes
    after: bytes = b""


def mutate(split: Callable[[bytes], Parts], plainly: Plainly, data: bytes, most: int, seed: int) -> bytes:
    """Change ``data``, at most to ``most`` bytes: its document, or any of its bytes."""
    rng = random.Random(seed)
    if rng.random() < _SHARE:
        try:
            parts = split(data)
            changed = to_json(_changed(rng, json.loads(parts.document)))
        except (ValueError, RecursionError, OverflowError):
            return plainly(data, most)
        before = parts.before
        if split is _sized:
            before = len(changed).to_bytes(8, "little")
        elif split is _counted:
            before = (len(changed) & 0xFFFFFFFF).to_bytes(4, "little")
        made = before + (changed[:-1] if split is _open else changed) + parts.after
        if len(made) <= most:
            return made
    return plainly(data, most)


def _changed(rng: random.Random, document: Any) -> Any:
    """``document`` with a change, or with one in the JSON that its metadata hold."""
    match document:
        case {"__metadata__": {"about": str(about)}} if rng.random() < 0.5:
            document["__metadata__"]["about"] = to_json(_changed(rng, json.loads(about))).decode(errors="replace")
            return document
    return mutate_document(rng, document, wide=_WIDE, deep=_DEEP)[0]


def _whole(data: bytes) -> Parts:
    return Parts(b"", data)


def _open(data: bytes) -> Parts:
    """A manifest without its signature and the last brace."""
    return Parts(b"", data + b"}")


def _sized(data: bytes) -> Parts:
    """A safetensors file: its length is made right."""
    end = 8 + int.from_bytes(data[:8], "little")
    return Parts(data[:8], data[8:end], data[end:])


def _counted(data: bytes) -> Parts:
    """The body of a prefix's header, as targets.py has it."""
    end = 4 + int.from_bytes(data[:4], "little")
    return Parts(data[:4], data[4:end], data[end:])


def _line(data: bytes) -> Parts:
    """One of several lines: another one for other lengths, which change all the time."""
    lines = data.split(b"\n")
    at = len(data) % len(lines)
    before, after = b"\n".join(lines[:at]), b"\n".join(lines[at + 1 :])
    return Parts(before + b"\n" if at else b"", lines[at], b"\n" + after if at + 1 < len(lines) else b"")


SPLITS: dict[str, Callable[[bytes], Parts]] = {
    "manifest": _open,
    "safetensors": _sized,
    "routes": _sized,
    "json": _whole,
    "prefix": _counted,
    "recording": _line,
    "journal": _line,
}
"""By target, where the JSON is; others have none."""
