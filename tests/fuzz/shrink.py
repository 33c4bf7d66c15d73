"""Makes a case smaller while it goes on to fail."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from .case import Case


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A case without steps that do not matter, and with the simplest choices that ``fails`` allows."""
    number = len(case.steps) - 1
    while number >= 0:
        less = case.without(number)
        if less.steps and fails(less):
            case = less
        number -= 1
    for part in ("settings", "model"):
        for name, simplest in _defaults(getattr(case, part)):
            simpler = replace(case, **{part: replace(getattr(case, part), **{name: simplest})})
            if simpler != case and fails(simpler):
                case = simpler
    for number, step in enumerate(case.steps):
        for name, simplest in _defaults(step):
            steps = [*case.steps]
            steps[number] = replace(steps[number], **{name: simplest})
            simpler = replace(case, steps=tuple(steps))
            if simpler != case and fails(simpler):
                case = simpler
    return case


def _defaults(value: Any) -> list[tuple[str, Any]]:
    return [(each.name, each.default) for each in fields(value)]
