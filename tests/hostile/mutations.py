"""Changes documents and bytes at random: what any file that is read might hold, or be."""

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.tiering.units import PAGE

HOSTILE: tuple[object, ...] = (
    None, True, False, 0, 1, -1, -5, 2, 255, 1 << 31, 1 << 32, 1 << 40, 1 << 63, 1 << 64, -(1 << 63), 10**400, 0.0, 0.5,
    -1.5, 1e308, float("nan"), float("inf"), "", "0", "keys", "values", "conv", "../../x", "/etc/passwd", "a\0b",
    "\ud800", "x" * 5000, "float32", "bfloat16", "complex128", "int8", "float8_e4m3fnuz", [], {}, [[]], [1, 2],
    {"a": 1}, [None],
)  # fmt: skip
"""What any place of a document may become."""


# --- documents --------------------------------------------------------------------------------------------------------


def mutate_document(
    rng: random.Random, document: Any, wide: Sequence[int] = (1000, 100_000), deep: Sequence[int] = (10, 200, 900)
) -> tuple[Any, str]:
    """``document``, of values as JSON has them, with one of its places changed; and what was changed.

    Some places become lists that are ``wide``, or ``deep``.
    """
    places = [*_places(document)]
    if not places or rng.random() < 0.05:
        made = rng.choice(HOSTILE)
        return made, f"all is {shorten(made)}"
    holder, key = rng.choice(places)
    old = holder[key]
    kind = rng.choice(("replace", "replace", "replace", "near", "drop", "twin", "swap", "deep", "wide"))
    match kind:
        case "drop":
            del holder[key]
        case "twin" if isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), old)
        case "swap":
            other = rng.choice(places)
            try:
                holder[key], other[0][other[1]] = other[0][other[1]], old
                json.dumps(document)
            except (ValueError, RecursionError, IndexError, KeyError):  # a document cannot hold itself
                holder[key] = None
        case "deep":
            holder[key] = _deep(rng.choice(deep))
        case "wide":
            holder[key] = [old] * rng.choice(wide)
        case "near" if type(old) is int:
            holder[key] = old + rng.choice((-1, 1, 4096, -4096, 1 << 32, -old, -2 * old))
        case "near" if isinstance(old, str) and old:
            at = rng.randrange(len(old))
            holder[key] = old[:at] + rng.choice(("", "x", "0", "\0")) + old[at + 1 :]
        case _:
            holder[key] = rng.choice(HOSTILE)
    return document, f"{kind} {shorten(key)} (was {shorten(old)})"


def _places(document: Any) -> Any:
    if isinstance(document, dict | list):
        for key in list(document) if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from _places(document[key])


def _deep(levels: int) -> Any:
    made: Any = []
    for _ in range(levels):
        made = [made]
    return made


def shorten(value: object) -> str:
    shown = repr(value) if not isinstance(value, int) or value.bit_length() < 100 else "a very large number"
    return shown if len(shown) <= 40 else shown[:40] + "..."


def to_json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("utf-8", "surrogatepass")


# --- any bytes --------------------------------------------------------------------------------------------------------


def mutate_bytes(rng: random.Random, path: Path) -> str:
    """Flip, cut, add or repeat bytes."""
    raw = bytearray(path.read_bytes() or b"\0")
    kind = rng.choice(("flip", "flip", "cut", "add", "zero", "repeat", "empty"))
    at = rng.randrange(len(raw) or 1)
    match kind:
        case "flip":
            for _ in range(rng.choice((1, 1, 8, 64))):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        case "cut":
            del raw[at:]
        case "add":
            raw += rng.randbytes(rng.choice((1, 100, PAGE)))
        case "zero":
            raw[at : at + 100] = bytes(len(raw[at : at + 100]))
        case "repeat":
            raw += raw[at:]
        case "empty":
            raw.clear()
    path.write_bytes(raw)
    return f"{kind} at {at}"


def replace_file(rng: random.Random, path: Path) -> str:
    """Put something else in the place of ``path``."""
    kind = rng.choice(("pipe", "folder", "dangling link", "link to itself", "link to a device", "link", "sparse"))
    content = path.read_bytes()
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "dangling link":
            path.symlink_to(path.with_name("nowhere"))
        case "link to itself":
            path.symlink_to(path)
        case "link to a device":
            path.symlink_to("/dev/zero")
        case "link":
            aside = path.with_name(f"{path.name}.elsewhere")
            aside.write_bytes(content)
            path.symlink_to(aside)
        case "sparse":
            path.write_bytes(content)
            os.truncate(path, 1 << 36)
    return f"it is a {kind}"
