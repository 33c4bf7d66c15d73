"""Which requests run, wait, pause or are refused (pure).

A request waits in a bounded queue until a row is free and there is room for all of its keys and values. Interactive
requests come before those of batches. Among equals the client comes first that has the fewest running requests, then
the one that was given the fewest tokens, then the one that waits longest. Nobody overtakes the first, so that it is not
passed over for ever. When an interactive request finds no room, the youngest running batch requests pause, as many as
it takes. They go on, where they stopped, when there is room again.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from .kv_room import KVRoom, Needs
from .pace import Pace

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
    """What there is for requests: ``rows`` at a time, ``queue`` that wait, ``kv`` for keys and values; None: nothing
    bounds these."""

    rows: int
    queue: int
    kv: KVRoom | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do now: requests to start, to go on with, to pause, those whose deadline has passed, and those that would
    never have room."""

    start: tuple[Ticket, ...] = ()
    resume: tuple[Ticket, ...] = ()
    pause: tuple[Ticket, ...] = ()
    late: tuple[Ticket, ...] = ()
    unfit: tuple[Ticket, ...] = ()


@dataclass
class Admission:
    """The requests of one model."""

    room: Room
    waiting: list[Ticket] = field(default_factory=list)
    running: list[Ticket] = field(default_factory=list)
    paused: list[Ticket] = field(default_factory=list)
    given: Counter[str] = field(default_factory=Counter)
    """Tokens that were promised to clients that have requests here."""

    pace: Pace = field(default_factory=Pace)
    """How fast the queue moves."""
    _needs: dict[int, Needs] = field(default_factory=dict)

    def fits(self, ticket: Ticket) -> bool:
        """Return whether there is room for ``ticket`` when nothing else runs."""
        return self.room.kv is None or self.room.kv.has_room([self.room.kv.needs(ticket.tokens)])

    def offer(self, ticket: Ticket) -> bool:
        """Let ``ticket`` wait. Returns False if the queue is full, besides what can run at once."""
        if len(self.waiting) >= self.room.queue + max(0, self.room.rows - len(self.running)):
            return False
        self.waiting.append(ticket)
        return True

    def end(self, number: int) -> None:
        """The request ``number`` has ended, wherever it was. Idempotent."""
        for tickets in (self.waiting, self.running, self.paused):
            tickets[:] = [ticket for ticket in tickets if ticket.number != number]
        self._needs.pop(number, None)
        here = {ticket.client for ticket in self._all()}
        for client in [*self.given]:
            if client not in here:
                del self.given[client]

    def decide(self, now: float) -> Changes:
        """Return what to do now, and note it as done."""
        late = tuple(ticket for ticket in self._all() if ticket.deadline is not None and ticket.deadline <= now)
        for each in late:
            self.end(each.number)
        unfit = tuple(ticket for ticket in self.waiting if not self.fits(ticket))
        for each in unfit:
            self.end(each.number)
        start: list[Ticket] = []
        resume: list[Ticket] = []
        pause: list[Ticket] = []
        while (ticket := self._next()) is not None:
            victims = self._victims(ticket)
            if victims is None:
                resume += self._resume_others()
                break
            for victim in victims:
                self.running.remove(victim)
                self.paused.append(victim)
            pause += victims
            if ticket in self.paused:
                self.paused.remove(ticket)
                resume.append(ticket)
            else:
                self.waiting.remove(ticket)
                self.pace.leave(now, others=bool(self.waiting))
                self.given[ticket.client] += ticket.tokens
                start.append(ticket)
            self.running.append(ticket)
        return Changes(tuple(start), tuple(resume), tuple(pause), late, unfit)

    def next_deadline(self) -> float | None:
        """Return when the next deadline passes."""
        return min((ticket.deadline for ticket in self._all() if ticket.deadline is not None), default=None)

    def _all(self) -> list[Ticket]:
        return [*self.waiting, *self.running, *self.paused]

    def _next(self) -> Ticket | None:
        return min([*self.waiting, *self.paused], key=self._rank, default=None)

    def _rank(self, ticket: Ticket) -> tuple[bool, bool, int, int, int]:
        running = sum(other.client == ticket.client for other in self.running)
        batch, fresh = ticket.priority == "batch", ticket not in self.paused
        return batch, fresh and batch, running, self.given[ticket.client], ticket.number

    def _has_room(self, ticket: Ticket, without: list[Ticket]) -> bool:
        """Whether ``ticket`` may run when those ``without`` pause."""
        running = [*(other for other in self.running if other not in without), ticket]
        if len(running) > self.room.rows:
            return False
        paused = [*(other for other in self.paused if other is not ticket), *without]
        return self.room.kv is None or self.room.kv.has_room(map(self._needs_of, running), map(self._needs_of, paused))

    def _needs_of(self, ticket: Ticket) -> Needs:
        assert self.room.kv is not None
        if ticket.number not in self._needs:
            self._needs[ticket.number] = self.room.kv.needs(ticket.tokens)
        return self._needs[ticket.number]

    def _victims(self, ticket: Ticket) -> list[Ticket] | None:
        """The fewest running requests that have to pause for ``ticket``, the youngest ones; None: it has to wait."""
        found: list[Ticket] = []
        batches = [other for other in self.running if other.priority == "batch"] if ticket.priority != "batch" else []
        batches.sort(key=lambda other: other.number)
        while not self._has_room(ticket, found):
            if not batches:
                return None
            found.append(batches.pop())
        return found

    def _resume_others(self) -> list[Ticket]:
        """Have paused requests go on although the first has no room: it may wait for what they hold."""
        found = []
        for ticket in sorted(self.paused, key=self._rank):
            if self._has_room(ticket, []):
                self.paused.remove(ticket)
                self.running.append(ticket)
                found.append(ticket)
        return found
