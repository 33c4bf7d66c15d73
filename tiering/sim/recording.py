"""Recordings of real runs (pure): what a planner began with, each event with its time, and the actions that came of it.

A recording is lines of text: what it is, the setup, one line for each event, and last a count and a checksum, so that
one that is truncated or altered is not mistaken for a run. Blocks are numbered in the order of the setup.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import RecordingError
from ..events import Action, Event, Refuse
from ..planner.setup import Setup
from .codec import Codec, setup_from, setup_to

FORMAT = "penstock recording"
VERSION = 2


class Step(NamedTuple):
    """``event``, handled at ``now`` (monotonic seconds), gave ``actions``."""

    now: float
    event: Event
    actions: list[Action]


@dataclass(frozen=True, slots=True)
class Recording:
    """A run from its beginning. ``whole`` if it goes to the end of what was to be recorded, not just as far as there
    was room for it."""

    setup: Setup
    steps: tuple[Step, ...]
    whole: bool


class Writer:
    """Turns a run into lines, as it goes."""

    def __init__(self, setup: Setup) -> None:
        self._codec = Codec(setup)
        self._steps = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self.head = self._add(f"{FORMAT} {VERSION}") + self._add(_compact(setup_to(setup)))
        """The first lines."""

    def step(self, now: float, event: Event, actions: Iterable[Action]) -> str:
        """The line for ``event``."""
        self._steps += 1
        codec = self._codec
        return self._add(_compact([now, codec.event(event), [codec.action(action) for action in actions]]))

    def end(self, *, whole: bool) -> str:
        """The last line."""
        return _compact({"steps": self._steps, "whole": whole, "checksum": self._digest.hexdigest()}) + "\n"

    def _add(self, text: str) -> str:
        line = text + "\n"
        self._digest.update(line.encode())
        return line


def read(lines: Iterable[str]) -> Recording:
    """The recording that ``lines`` hold. Raises RecordingError when they hold none, or one that is truncated, altered,
    or of another version."""
    found = [line.rstrip("\n") for line in lines]
    if not found or not found[0].startswith(FORMAT):
        raise RecordingError("this is no recording of a penstock run; record one with load(..., record=FILE)")
    if found[0] != f"{FORMAT} {VERSION}":
        raise RecordingError(f"this is a {found[0]!r}; this penstock reads version {VERSION}: record the run again")
    steps, whole = _checked(found)
    try:
        setup = setup_from(json.loads(found[1]))
        codec = Codec(setup)
        made = tuple(_step(codec, json.loads(line)) for line in steps)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecordingError(f"this recording makes no sense ({error!r}); record the run again") from error
    return Recording(setup, made, whole)


def _checked(lines: list[str]) -> tuple[list[str], bool]:
    """The lines with steps, and whether they are the whole run; if the last line says so."""
    try:
        end = json.loads(lines[-1])
        checksum, count, whole = end["checksum"], end["steps"], end["whole"]
    except (ValueError, LookupError, TypeError) as error:
        raise RecordingError("this recording is truncated: its last line is missing; record the run again") from error
    digest = hashlib.blake2b("".join(f"{line}\n" for line in lines[:-1]).encode(), digest_size=16)
    if digest.hexdigest() != checksum or count != len(lines) - 3:
        raise RecordingError("this recording is damaged: its checksum does not match; record the run again")
    return lines[2:-1], bool(whole)


def _step(codec: Codec, value: list[Any]) -> Step:
    now, event, actions = value
    return Step(float(now), codec.event_from(event), [codec.action_from(action) for action in actions])


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


# --- replay ---------------------------------------------------------------------------------------------------------


def replay(recording: Recording) -> Iterator[list[Action]]:
    """The actions of a new planner for each event of ``recording``."""
    planner = recording.setup.planner()
    return (planner.handle(step.event, step.now) for step in recording.steps)


def first_difference(recording: Recording) -> int | None:
    """The number of the first step for which a new planner acts in another way; None if there is none."""
    for number, (step, actions) in enumerate(zip(recording.steps, replay(recording), strict=True)):
        if list(map(_comparable, step.actions)) != list(map(_comparable, actions)):
            return number
    return None


def _comparable(action: Action) -> object:
    """Errors are never equal; what they say is."""
    return (action.ticket, str(action.error)) if isinstance(action, Refuse) else action
