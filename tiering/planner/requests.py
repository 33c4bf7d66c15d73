"""Requests for blocks: tickets that wait, and the queue of absent blocks in demand (pure)."""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from ..events import Stream
from ..units import BlockId
from .residency import Residency


@dataclass(slots=True)
class Ticket:
    """One stream's request, until every block of it is granted or one is refused."""

    stream: Stream
    wants: set[BlockId] = field(default_factory=set)


class Requests:
    """Tickets by number, the tickets that wait for each block, and the queue of demand.

    ``queue`` holds the blocks in demand that nobody reads yet, in the order in which they were asked for.
    """

    def __init__(self, residency: Residency) -> None:
        self.tickets: dict[int, Ticket] = {}
        self.waiting: dict[BlockId, list[int]] = {}
        self.queue: dict[BlockId, None] = {}
        self._residency = residency

    def wait(self, number: int, stream: Stream, block: BlockId) -> None:
        """Ticket ``number`` of ``stream`` waits for ``block``, which is absent or being read."""
        ticket = self.tickets.get(number)
        if ticket is None:
            ticket = self.tickets[number] = Ticket(stream)
        ticket.wants.add(block)
        self.waiting.setdefault(block, []).append(number)
        if self._residency.absent(block):
            self.queue.setdefault(block)

    def arrived(self, block: BlockId) -> list[tuple[int, Stream]]:
        """Take ``block``, which is ready, off the requests: the tickets that it is granted to, with their streams."""
        granted = []
        for number in self.waiting.pop(block, ()):
            ticket = self.tickets[number]
            ticket.wants.remove(block)
            if not ticket.wants:
                del self.tickets[number]
            granted.append((number, ticket.stream))
        return granted

    def forget(self, number: int) -> None:
        """Drop ticket ``number``, if it still waits; blocks that nobody else wants leave the queue."""
        ticket = self.tickets.pop(number, None)
        for block in ticket.wants if ticket else ():
            waiting = self.waiting[block]
            waiting.remove(number)
            if not waiting:
                del self.waiting[block]
                self.queue.pop(block, None)

    def forget_stream(self, stream: Stream) -> None:
        """Drop every ticket of ``stream``."""
        for number in [number for number, ticket in self.tickets.items() if ticket.stream == stream]:
            self.forget(number)

    def waiters(self) -> Iterable[tuple[BlockId, int, Stream]]:
        """Blocks in the queue with the number and the stream of each ticket that waits for them, in order."""
        for block in self.queue:
            for number in self.waiting[block]:
                yield block, number, self.tickets[number].stream

    def check_integrity(self, reading: Set[BlockId]) -> None:
        """Raise AssertionError unless every wish is queued or in ``reading``, and counted once on both sides."""
        assert all(self._residency.absent(block) and block in self.waiting for block in self.queue)
        assert self.waiting.keys() <= self.queue.keys() | reading
        for number, ticket in self.tickets.items():
            assert ticket.wants
            assert all(number in self.waiting[block] for block in ticket.wants)
        assert sum(map(len, self.waiting.values())) == sum(len(ticket.wants) for ticket in self.tickets.values())
