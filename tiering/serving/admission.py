"""Which requests run, wait, pause or are refused (pure).

A request waits in a bounded queue until a row is free and there is room for all of its keys and values. Interactive
requests come before those of batches. Among equals the client comes first that has the fewest running requests, then
the one that was given the fewest tokens, then the one that waits longest. When an interactive request finds no room,
the youngest running batch request pauses. It goes on, where it stopped, when there is room again.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Priority = Literal["interactive", "batch"]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request. ``tokens`` are those of its prompt and the most that it may add."""

    number: int
    tokens: int
    client: str = ""
    priority: Priority = "interactive"
    deadline: float | None = None
    """When it is no longer wanted, on the clock of the caller."""


@dataclass(frozen=True, slots=True)
class Room:
    """What there is for requests: ``rows`` at a time, ``queue`` that wait, ``tokens`` of keys and values; None: any
    number."""

    rows: int
    queue: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do now: requests to start, to go on with, to pause, and those whose deadline has passed."""

    start: tuple[Ticket, ...] = ()
    resume: tuple[Ticket, ...] = ()
    pause: tuple[Ticket, ...] = ()
    late: tuple[Ticket, ...] = ()


@dataclass
class Admission:
    """The requests of one model."""

    room: Room
    waiting: list[Ticket] = field(default_factory=list)
    running: list[Ticket] = field(default_factory=list)
    paused: list[Ticket] = field(default_factory=list)
    given: Counter[str] = field(default_factory=Counter)
    """Tokens that were promised to clients that have requests here."""

    def fits(self, ticket: Ticket) -> bool:
        """Return whether there is room for ``ticket`` when nothing else runs."""
        return self.room.tokens is None or ticket.tokens <= self.room.tokens

    def offer(self, ticket: Ticket) -> bool:
        """Let ``ticket``, which fits, wait. Returns False if the queue is full, besides what can run at once."""
        if len(self.waiting) >= self.room.queue + max(0, self.room.rows - len(self.running)):
            return False
        self.waiting.append(ticket)
        return True

    def end(self, number: int) -> None:
        """The request ``number`` has ended, wherever it was. Idempotent."""
        for tickets in (self.waiting, self.running, self.paused):
            tickets[:] = [ticket for ticket in tickets if ticket.number != number]
        here = {ticket.client for ticket in self._all()}
        for client in [*self.given]:
            if client not in here:
                del self.given[client]

    def decide(self, now: float) -> Changes:
        """Return what to do now, and note it as done."""
        late = tuple(ticket for ticket in self._all() if ticket.deadline is not None and ticket.deadline <= now)
        for each in late:
            self.end(each.number)
        start: list[Ticket] = []
        resume: list[Ticket] = []
        pause: list[Ticket] = []
        while (ticket := self._next()) is not None:
            if not self._has_room(ticket):
                victim = self._victim(ticket)
                if victim is None:
                    break
                self.running.remove(victim)
                self.paused.append(victim)
                pause.append(victim)
                continue
            if ticket in self.paused:
                self.paused.remove(ticket)
                resume.append(ticket)
            else:
                self.waiting.remove(ticket)
                self.given[ticket.client] += ticket.tokens
                start.append(ticket)
            self.running.append(ticket)
        return Changes(tuple(start), tuple(resume), tuple(pause), late)

    def next_deadline(self) -> float | None:
        """Return when the next deadline passes."""
        return min((ticket.deadline for ticket in self._all() if ticket.deadline is not None), default=None)

    def _all(self) -> list[Ticket]:
        return [*self.waiting, *self.running, *self.paused]

    def _next(self) -> Ticket | None:
        running = Counter(ticket.client for ticket in self.running)

        def rank(ticket: Ticket) -> tuple[bool, bool, int, int, int]:
            batch, fresh = ticket.priority == "batch", ticket not in self.paused
            return batch, fresh and batch, running[ticket.client], self.given[ticket.client], ticket.number

        return min([*self.waiting, *self.paused], key=rank, default=None)

    def _has_room(self, ticket: Ticket) -> bool:
        if len(self.running) >= self.room.rows:
            return False
        return self.room.tokens is None or self._held() + self._needs(ticket) <= self.room.tokens

    def _held(self) -> int:
        """Tokens of keys and values that are promised: also those of paused requests, which keep theirs."""
        return sum(ticket.tokens for ticket in (*self.running, *self.paused))

    def _needs(self, ticket: Ticket) -> int:
        return 0 if ticket in self.paused else ticket.tokens

    def _victim(self, ticket: Ticket) -> Ticket | None:
        """The running request that pauses for ``ticket``, if that helps."""
        if ticket.priority == "batch":
            return None
        if self.room.tokens is not None and self._held() + self._needs(ticket) > self.room.tokens:
            return None  # a paused request keeps its keys and values
        batches = [other for other in self.running if other.priority == "batch"]
        return max(batches, key=lambda other: other.number, default=None)
