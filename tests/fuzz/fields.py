"""Fields with choices: what a random case may have at a place, and how it is written as JSON."""

import random
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

Drawn = TypeVar("Drawn")


def pick(*choices: Any) -> Any:
    """A field of a dataclass that has one of ``choices``. The first is the simplest one, and the default."""
    return field(default=choices[0], metadata={"choices": choices})


def draw(kind: type[Drawn], dice: random.Random) -> Drawn:
    """An instance of the dataclass ``kind`` with random choices."""
    found = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if "choices" in each.metadata:
            found[each.name] = dice.choice(each.metadata["choices"])
        elif each.default is MISSING:
            raise TypeError(f"{kind.__name__}.{each.name} has neither choices nor a default")
    return kind(**found)


def to_json(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults."""
    return {each.name: getattr(value, each.name) for each in fields(value) if getattr(value, each.name) != each.default}
