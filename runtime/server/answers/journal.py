"""The last requests of a model: how long they are and how long they take, never what they say."""

import itertools
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from .clock import Clock

MOST = 32
"""Requests that are remembered, the newest."""


@dataclass(slots=True)
class Entry:
    """A request. ``ending`` says why its last answer ended; None while one goes on."""

    clock: Clock
    prompt_tokens: int
    cached: int = 0
    ending: str | None = None
    number: int = 0

    def report(self, now: float) -> dict[str, Any]:
        """For people who look on. ``now`` is on the clock of ``clock``."""
        clock = self.clock
        going = "waiting" if clock.first is None else "answering"
        return {
            "number": self.number,
            "state": self.ending or going,
            "age_s": now - clock.asked,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached,
            "tokens": clock.tokens,
            "first_token_s": None if clock.first is None else clock.first - clock.asked,
            "tokens_per_second": clock.report()["tokens_per_second"],
        }


class Journal:
    """The last requests of a model."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._entries = deque[Entry](maxlen=MOST)

    def add(self, entry: Entry) -> None:
        """A request was accepted. It gets a number."""
        entry.number = next(self._numbers)
        self._entries.append(entry)

    def report(self) -> list[dict[str, Any]]:
        """All of them, the newest first."""
        now = time.perf_counter()
        return [entry.report(now) for entry in reversed(self._entries)]
