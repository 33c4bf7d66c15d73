"""Bodies of requests: read up to a limit, checked, unknown fields refused."""

import asyncio
import difflib
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, ValidationError, model_validator
from starlette.requests import ClientDisconnect, Request

from .errors import ApiError

SECONDS = 60.0
"""For a whole body to arrive."""

_TOLD = 5
"""Faults of a body that are named."""


class Body(BaseModel):
    """An object in a request. A field that it does not know is refused, unless it is one of ``harmless`` or null: it
    might change the answer."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())
    harmless: ClassVar[frozenset[str]] = frozenset()
    """Fields that change no answer."""

    @model_validator(mode="after")
    def _refuse_unknown(self) -> "Body":
        known = [field.alias or name for name, field in type(self).model_fields.items()]
        for name, value in (self.model_extra or {}).items():
            if name not in self.harmless and value is not None:
                near = difflib.get_close_matches(name, known, 1)
                raise ValueError(
                    f"{name!r} is not known here and might change the answer"
                    + (f"; did you mean {near[0]!r}?" if near else "; leave it out")
                )
        return self


Read = TypeVar("Read", bound=BaseModel)

ONE, SEVERAL = "~one", "~several"


def _count(value: object) -> str:
    return SEVERAL if isinstance(value, list) else ONE


ONE_OR_SEVERAL = Discriminator(_count)
"""Tells a value from a list of values, which are tagged ONE and SEVERAL. Errors do not name the tags."""


async def read_body(request: Request, kind: type[Read], most: int) -> Read:
    """Return the body of ``request``. Raises ApiError: it has more than ``most`` bytes, takes too long, is none."""
    try:
        async with asyncio.timeout(SECONDS):
            raw = await _read_bytes(request, most)
    except TimeoutError as error:
        raise ApiError(408, f"the body did not arrive within {SECONDS:.0f} s") from error
    except ClientDisconnect as error:
        raise ApiError(400, "the client went away") from error
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _fault(error) from error


async def _read_bytes(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "0")
    too_large = not length.isdecimal() or int(length[:20]) > most
    found, dropped = bytearray(), 0
    async for piece in request.stream():
        if too_large:  # a client that still sends does not hear the answer, so twice as much again is read
            dropped += len(piece)
            if dropped > 2 * most:
                break
            continue
        found += piece
        if len(found) > most:
            too_large = True
            found.clear()
    if too_large:
        raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
    return bytes(found)


def _fault(error: ValidationError) -> ApiError:
    faults: Sequence[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    lines = dict.fromkeys(_line(fault) for fault in faults)
    more = f"; and {len(lines) - _TOLD} more" if len(lines) > _TOLD else ""
    return ApiError(400, "; ".join([*lines][:_TOLD]) + more, param=_place(faults[0]["loc"]) or None)


def _line(fault: Any) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    place = _place(fault["loc"])
    return f"{place}: {message}" if place else message


def _place(parts: Sequence[int | str]) -> str:
    place = ""
    for part in parts:
        if part in (ONE, SEVERAL):
            continue
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place.encode("utf-8", "replace").decode()[:200]
