"""The lines of a batch file: one request each, checked before anything is computed, and ordered by how they begin."""

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import aiofiles

from ...kernels.io.regular import open_regular
from ...tiering.errors import BatchError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
"""What a line may ask for."""
_STEP = 256
"""Characters of a request that are compared at a time."""


@dataclass(frozen=True, slots=True)
class Line:
    """A request, which stands at ``offset`` of its file. ``begins`` orders requests: those that begin alike stand
    together."""

    number: int
    offset: int
    length: int
    custom_id: str
    url: str
    begins: bytes


async def read_lines(path: Path) -> list[Line]:
    """Return the requests of the file ``path``. Raises BatchError, which names the line."""
    found: list[Line] = []
    known: dict[str, int] = {}
    offset = 0
    with _reading(path):
        async with aiofiles.open(path, "rb", opener=open_regular) as file:
            number = 0
            async for raw in file:
                number += 1
                if raw.strip():
                    line = _check(path, number, offset, raw)
                    first = known.setdefault(line.custom_id, number)
                    if first != number:
                        raise BatchError(
                            f"{path}, line {number}: custom_id {line.custom_id!r} is that of line {first}; "
                            "give each request its own"
                        )
                    found.append(line)
                offset += len(raw)
    if not found:
        raise BatchError(f"{path} has no requests; write one JSON object in each line")
    return found


async def read_body(path: Path, line: Line) -> bytes:
    """Return the body of ``line``, for the only model that there is. Raises BatchError."""
    with _reading(path):
        async with aiofiles.open(path, "rb", opener=open_regular) as file:
            await file.seek(line.offset)
            body = json.loads(await file.read(line.length))["body"]
    body.pop("model", None)  # the name that it has elsewhere
    return json.dumps(body).encode()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """The file ``path`` is read, which happens twice: no pipe can be."""
    try:
        yield
    except OSError as error:
        hint = "; write the requests into one" if error.errno == errno.EINVAL else ""
        raise BatchError(f"{path} cannot be read: {error.strerror}{hint}") from error


def _check(path: Path, number: int, offset: int, raw: bytes) -> Line:
    def wrong(what: str) -> BatchError:
        return BatchError(f"{path}, line {number}: {what}")

    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise wrong(f"it is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise wrong("it is no JSON object")
    custom_id, body, url = document.get("custom_id"), document.get("body"), document.get("url")
    if not isinstance(custom_id, str) or not custom_id:
        raise wrong("custom_id is missing; give each request a text that its answer is found by")
    if any("\ud800" <= each <= "\udfff" for each in custom_id):  # the file of answers could not hold it
        raise wrong(f"custom_id {custom_id!r} is no text: half a character is in it; give the request another")
    if url not in URLS:
        raise wrong(f"url is {url!r}; it may be {', '.join(URLS)}")
    if document.get("method", "POST") != "POST":
        raise wrong(f'method is {document["method"]!r}; it is "POST"')
    if not isinstance(body, dict):
        raise wrong("body is no JSON object")
    if body.get("stream"):
        raise wrong("answers in a file are not streamed; leave stream out")
    return Line(number, offset, len(raw), custom_id, url, _find_beginning(url, body))


def _find_beginning(url: str, body: Mapping[str, Any]) -> bytes:
    """Hashes of what the prompt is made of, step by step: of two requests they agree as far as they begin alike."""
    said = [body.get(name) for name in ("tools", "instructions", "messages", "prompt", "input")]
    text = json.dumps([url, *said])
    return b"".join(
        blake2b(text[at : at + _STEP].encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for at in range(0, len(text), _STEP)
    )


def order_lines(lines: Sequence[Line]) -> list[Line]:
    """Return ``lines`` so that those that begin alike follow each other."""
    return sorted(lines, key=lambda line: (line.begins, line.number))
