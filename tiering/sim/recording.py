"""Recordings of real runs (pure): what a planner began with, each event with its time, and the actions that came of it.

A recording is lines of text: what it is, the setup, one line for each event, and last a count and a checksum, so that
one that is truncated or altered is not mistaken for a run. Blocks are numbered in the order of the setup. Where KV is
in pages, the setup and the events of its planner stand between those of weights, on lines of their own.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NamedTuple

from ..driving.strict_json import Fields, many, number, parse_json, whole
from ..errors import RecordingError
from ..events import Action, Event, Refuse
from ..kv.events import KVAction, KVEvent
from ..kv.setup import KVSetup
from ..planner.setup import Setup
from .codec import Codec, Plain, setup_from, setup_to
from .kv_codec import KVCodec

FORMAT = "penstock recording"
VERSION = 3

_KV_SETUP, _KV_STEP = "kv", "k"
"""What lines of KV begin with."""
_BYTES = 1 << 50
"""Most bytes of anything in a recording."""


class Step(NamedTuple):
    """``event``, handled at ``now`` (monotonic seconds), gave ``actions``."""

    now: float
    event: Event
    actions: list[Action]


class KVStep(NamedTuple):
    """``event`` of KV, handled at ``now`` (monotonic seconds), gave ``actions``; as KVCodec writes them."""

    now: float
    event: Plain
    actions: list[Plain]


@dataclass(frozen=True, slots=True)
class Recording:
    """A run from its beginning. ``whole`` if it goes to the end of what was to be recorded, not just as far as there
    was room for it. ``kv`` is None where KV is not in pages."""

    setup: Setup
    steps: tuple[Step, ...]
    whole: bool
    kv: KVSetup | None = None
    kv_steps: tuple[KVStep, ...] = ()


class Writer:
    """Turns a run into lines, as it goes."""

    def __init__(self, setup: Setup) -> None:
        self._codec, self._kv_codec = Codec(setup), KVCodec()
        self._steps = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self.head = self._add(f"{FORMAT} {VERSION}") + self._add(_compact(setup_to(setup)))
        """The first lines."""

    def step(self, now: float, event: Event, actions: Iterable[Action]) -> str:
        """The line for ``event``."""
        self._steps += 1
        codec = self._codec
        return self._add(_compact([now, codec.event(event), [codec.action(action) for action in actions]]))

    def begin_kv(self, setup: KVSetup) -> str:
        """The line for the planner of KV, before the first of its events."""
        self._steps += 1
        return self._add(_compact([_KV_SETUP, asdict(setup)]))

    def kv_step(self, now: float, event: KVEvent, actions: Iterable[KVAction]) -> str:
        """The line for ``event`` of KV."""
        self._steps += 1
        codec = self._kv_codec
        return self._add(_compact([_KV_STEP, now, codec.event(event), [codec.action(action) for action in actions]]))

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
    steps, is_whole = _checked(found)
    try:
        return _made(setup_from(parse_json(found[1])), map(parse_json, steps), is_whole)
    except ValueError as error:
        raise RecordingError(f"this recording makes no sense ({error}); record the run again") from error


def _made(setup: Setup, lines: Iterable[object], is_whole: bool) -> Recording:
    codec, kv_codec = Codec(setup), KVCodec()
    steps: list[Step] = []
    kv: KVSetup | None = None
    kv_steps: list[KVStep] = []
    for line in lines:
        match line:
            case ["kv", about] if kv is None:
                kv = _kv_setup(about)
            case ["k", now, list(event), list(actions)] if kv is not None:
                kv_codec.event_from(event)
                kv_steps.append(KVStep(number(now, "a time"), event, actions))
            case [now, event, actions]:
                acted = many(actions, codec.action_from, name="actions")
                steps.append(Step(number(now, "a time"), codec.event_from(event), [*acted]))
            case _:
                raise ValueError("a line is none of a recording")
    return Recording(setup, tuple(steps), is_whole, kv, tuple(kv_steps))


def _kv_setup(value: object) -> KVSetup:
    fields = Fields(value)
    flash = fields.take("flash_limit")
    setup = KVSetup(
        fields.whole("capacity", 0, _BYTES),
        None if flash is None else whole(flash, 0, _BYTES, "flash_limit"),
        fields.whole("device", 0, _BYTES),
    )
    fields.end()
    return setup


def _checked(lines: list[str]) -> tuple[list[str], bool]:
    """The lines with steps, and whether they are the whole run; if the last line says so."""
    try:
        end = Fields(parse_json(lines[-1]))
        checksum, count, is_whole = end.take("checksum"), end.whole("steps"), end.flag("whole")
        end.end()
    except ValueError as error:
        raise RecordingError("this recording is truncated: its last line is missing; record the run again") from error
    digest = hashlib.blake2b("".join(f"{line}\n" for line in lines[:-1]).encode(), digest_size=16)
    if digest.hexdigest() != checksum or count != len(lines) - 3:
        raise RecordingError("this recording is damaged: its checksum does not match; record the run again")
    return lines[2:-1], is_whole


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


# --- replay ---------------------------------------------------------------------------------------------------------


def replay(recording: Recording) -> Iterator[list[Action]]:
    """The actions of a new planner for each event of ``recording``. Raises RecordingError for an event that cannot have
    happened."""
    with _making_sense(0):
        planner = recording.setup.planner()
    for count, step in enumerate(recording.steps, 1):
        with _making_sense(count):
            actions = planner.handle(step.event, step.now)
        yield actions


@contextmanager
def _making_sense(count: int) -> Iterator[None]:
    """A planner is given what a recording says, which may be anything: what it stumbles over cannot have happened."""
    try:
        yield
    except Exception as error:
        raise RecordingError(
            f"this recording makes no sense: its event {count} cannot have happened ({type(error).__name__}: {error}); "
            "record the run again"
        ) from error


def replay_kv(recording: Recording) -> Iterator[list[Plain]]:
    """The actions of a new KV planner for each event of KV, as KVCodec writes them. Raises RecordingError for an event
    that cannot have happened."""
    if recording.kv is None:
        return
    planner, codec = recording.kv.planner(), KVCodec()
    for count, step in enumerate(recording.kv_steps, 1):
        with _making_sense(count):
            actions = [codec.action(action) for action in planner.handle(codec.event_from(step.event))]
        yield actions


def first_kv_difference(recording: Recording) -> int | None:
    """The number of the first event of KV for which a new planner acts in another way; None if there is none."""
    replayed = zip(recording.kv_steps, replay_kv(recording), strict=True)
    return next((number for number, (step, actions) in enumerate(replayed) if step.actions != actions), None)


def first_difference(recording: Recording) -> int | None:
    """The number of the first step for which a new planner acts in another way; None if there is none. Of weights: for
    KV see ``first_kv_difference``."""
    for place, (step, actions) in enumerate(zip(recording.steps, replay(recording), strict=True)):
        if list(map(_comparable, step.actions)) != list(map(_comparable, actions)):
            return place
    return None


def _comparable(action: Action) -> object:
    """Errors are never equal; what they say is."""
    return (action.ticket, str(action.error)) if isinstance(action, Refuse) else action
