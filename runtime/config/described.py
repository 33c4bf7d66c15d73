"""The settings as people read them: one description for comments, ``--help`` and the reference.

The descriptions themselves are written in settings.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .config import Config
from .settings import OVERRIDES
from .values import Written


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the file, in words.

    ``name`` stands for its value in the usage of a command, ``kind`` says what the value may be, ``default`` and
    ``example`` are as TOML has them. ``plain``: ``name`` says all of
    ``kind``. ``several``: it is a list.
    """

    section: str
    key: str
    keyword: str
    name: str
    kind: str
    default: str
    example: str
    text: str
    plain: bool
    several: bool

    @property
    def option(self) -> str:
        """The option of the command line."""
        return "--" + self.keyword.replace("_", "-")

    @property
    def brief(self) -> str:
        """The first sentence of the description."""
        end = self.text.find(". ")
        return self.text if end < 0 else self.text[: end + 1]


def described() -> Iterator[Setting]:
    """All settings, in the order of the file."""
    for section, field in Config.model_fields.items():
        model: Any = field.annotation
        for key, each in model.model_fields.items():
            yield _setting(section, key, each)


def sections() -> dict[str, str]:
    """What each section is about, in a sentence."""
    found: dict[str, str] = {}
    for section, field in Config.model_fields.items():
        model: type[BaseModel] = field.annotation  # type: ignore[assignment]
        found[section] = model.__doc__ or ""
    return found


def _setting(section: str, key: str, field: FieldInfo) -> Setting:
    keyword = next(name for name, place in OVERRIDES.items() if place == (section, key))
    written = next((each for each in field.metadata if isinstance(each, Written)), None)
    choices = get_args(field.annotation)
    if written is None:
        written = Written(key.upper(), ", ".join(choices) or "text", plain=not choices)
    default = "~/.cache/penstock" if (section, key) == ("store", "path") else field.default
    return Setting(
        section,
        key,
        keyword,
        written.name,
        written.words,
        _toml(default),
        _toml((field.examples or [""])[0]),
        field.description or "",
        written.plain,
        several=isinstance(field.default, tuple),
    )


def _toml(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)
