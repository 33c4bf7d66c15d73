"""Takes JSON apart that others may have written (pure): nothing but the expected kinds, within bounds, and all of it.

Python's own reader takes more than JSON, and ``int(...)`` or ``str(...)`` around a value takes nearly anything.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

LARGEST = (1 << 63) - 1
"""The largest whole number that any of our files has."""

Item = TypeVar("Item")


def parse_json(raw: bytes | str) -> Any:
    """The value that ``raw``, UTF-8, is. Raises ValueError for anything else, also where it is nested so deep, or has
    numbers so long, that Python gives up; for NaN and infinity; and for an object that has a key twice."""
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


class Fields:
    """An object, whose fields are taken one by one: each is there, and of its kind; ``end`` checks that none is left.

    All methods raise ValueError, which names the field.
    """

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"an object was expected, not {shorten(value)}")
        self._left: dict[str, Any] = dict(value)

    def take(self, name: str) -> Any:
        """The field ``name``, whatever it is."""
        if name not in self._left:
            raise ValueError(f"{name} is missing")
        return self._left.pop(name)

    def whole(self, name: str, least: int = 0, most: int = LARGEST) -> int:
        """A whole number from ``least`` to ``most``."""
        return whole(self.take(name), least, most, name)

    def number(self, name: str) -> float:
        """A finite number."""
        return number(self.take(name), name)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.take(name)
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {shorten(value)}, not true or false")
        return value

    def text(self, name: str, pattern: str = r"[^\0-\x1f\x7f]{0,4096}") -> str:
        """A text that matches the whole of ``pattern``."""
        return text(self.take(name), pattern, name)

    def many(self, name: str, take: Callable[[Any], Item], most: int = LARGEST) -> tuple[Item, ...]:
        """A list of at most ``most`` items, each of which ``take`` has taken apart."""
        return many(self.take(name), take, most, name)

    def end(self) -> None:
        """No field is left."""
        if self._left:
            raise ValueError(f"{shorten(next(iter(self._left)))} is no field here")


def whole(value: object, least: int = 0, most: int = LARGEST, name: str = "a number") -> int:
    """``value``, a whole number from ``least`` to ``most``. Raises ValueError, which calls it ``name``."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {shorten(value)}, not a whole number from {least} to {most}")
    return value


def number(value: object, name: str = "a number") -> float:
    """``value``, a finite number. Raises ValueError, which calls it ``name``."""
    # Whole numbers are compared as such: one of 400 digits is no float.
    if type(value) not in (int, float) or not -1.7e308 <= value <= 1.7e308:  # type: ignore[operator]
        raise ValueError(f"{name} is {shorten(value)}, not a number")
    return float(value)  # type: ignore[arg-type]


def text(value: object, pattern: str, name: str = "a text") -> str:
    """``value``, a text that matches the whole of ``pattern``. Raises ValueError, which calls it ``name``."""
    # Halves of a pair of surrogates are no text: they can be neither written nor shown.
    if not isinstance(value, str) or re.fullmatch(pattern, value) is None or re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{name} is {shorten(value)}, not as it should be")
    return value


def many(value: object, take: Callable[[Any], Item], most: int = LARGEST, name: str = "a list") -> tuple[Item, ...]:
    """The items of the list ``value``, at most ``most``, each as ``take`` gives it. Raises ValueError."""
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{name} is {shorten(value)}, not a list of at most {most}")
    return tuple(map(take, value))


def items(value: object, count: int) -> list[Any]:
    """The items of the list ``value``, which has ``count``. Raises ValueError."""
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"{shorten(value)} stands where a list of {count} was expected")
    return value


def shorten(value: object) -> str:
    """``value`` for a message, in one line and a few words, however large it is."""
    match value:
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"an object of {len(value)}"
        case str():
            shown = repr(value[:60])
            return shown if len(shown) <= 60 else shown[:58] + "…" + shown[-1]
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case int() if value.bit_length() > 64:
            return f"a number of {value.bit_length()} bits"
    return repr(value)
