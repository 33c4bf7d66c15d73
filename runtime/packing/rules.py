"""The weight formats that settings ask for. "auto" is the faster of the two formats that keep every bit."""

from collections.abc import Callable
from dataclasses import dataclass

from ..checkpoints.describe import Description
from ..checkpoints.source import Source
from ..config.settings import Weights
from ..config.values import EXACT_FORMATS
from .arrange.formats import Rules


@dataclass(frozen=True, slots=True)
class ExactRules:
    """Rules of which ``choose`` tells one, for a source and its description, by the name of its general format. It
    is asked where none of ``candidates``, or several of them, have a bundle."""

    candidates: tuple[Rules, ...]
    choose: Callable[[Source, Description], str]


def named_rules(weights: Weights) -> tuple[Rules, ...]:
    """Return the format of each part of a model, by the settings ``weights``: for "auto" a choice of several."""
    formats: dict[str, str] = weights.model_dump(exclude={"quality"})
    given = {part: name for part, name in formats.items() if name != "auto"}
    general = given.pop("format", None)
    return tuple(Rules(name, **given) for name in (EXACT_FORMATS if general is None else (general,)))
