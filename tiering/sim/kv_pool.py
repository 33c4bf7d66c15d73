"""A pool of KV pages, simulated: the planner of real runs, before a modelled drive (pure)."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from ..errors import ReadError
from ..events import Refuse
from ..kv.events import (
    FetchPages,
    HoldPages,
    KVEvent,
    LetGo,
    Open,
    PagesRead,
    PagesWritten,
    ReadAhead,
    ReadPages,
    Wake,
    WritePages,
)
from ..kv.pages import Page
from ..kv.setup import KVSetup


class SimulatedPool:
    """Follows runtime/kv/pages/pool.py. ``read`` performs a read, whose end is told to ``landed``; ``write`` performs a
    write and calls back. ``wake`` is told of tickets that are answered."""

    def __init__(
        self,
        setup: KVSetup,
        read: Callable[[ReadPages], None],
        write: Callable[[int, Callable[[], None]], None],
        wake: Callable[[int], None],
    ) -> None:
        self.planner = setup.planner()
        self.answers: dict[int, Wake | Refuse] = {}
        """By ticket, until they are taken."""
        self.bytes_read = 0
        self.building = True
        """Whether a context is still made, before the time begins: then reads and writes end at once."""
        self._read, self._write, self._wake = read, write, wake
        self._tickets = count()
        self._late: deque[KVEvent] = deque()
        self._busy = False

    @property
    def given_up(self) -> int:
        """Pages that were read ahead, and left memory before anybody looked at them."""
        return self.planner.room.given_up

    def open(self, page: Page) -> int:
        """Ask for a slot; the ticket."""
        ticket = next(self._tickets)
        self.post(Open(ticket, page))
        return ticket

    def hold(self, pages: Sequence[Page]) -> Sequence[Page]:
        """Those of ``pages`` that are in memory, held."""
        ticket = next(self._tickets)
        self.post(HoldPages(ticket, pages))
        return self._taken(ticket)

    def fetch(self, pages: Sequence[Page]) -> int:
        """Ask for ``pages``, held; the ticket."""
        ticket = next(self._tickets)
        self.post(FetchPages(ticket, pages))
        return ticket

    def let_go(self, pages: Sequence[Page]) -> None:
        """One use of each of ``pages`` has ended."""
        self.post(LetGo(pages))

    def read_ahead(self, pages: Sequence[Page]) -> int:
        """As PagePool.read_ahead."""
        ticket = next(self._tickets)
        self.post(ReadAhead(ticket, pages))
        return len(self._taken(ticket))

    def post(self, event: KVEvent) -> None:
        """Hand ``event`` to the planner, and do what it says."""
        self._late.append(event)
        if self._busy:
            return
        self._busy = True
        while self._late:
            for action in self.planner.handle(self._late.popleft()):
                match action:
                    case Wake() | Refuse():
                        self.answers[action.ticket] = action
                        self._wake(action.ticket)
                    case ReadPages():
                        self._begin_read(action)
                    case WritePages():
                        self._begin_write(action)
        self._busy = False

    def landed(self, read: ReadPages, *, failed: bool) -> None:
        """``read`` has ended."""
        self.post(PagesRead(read.read, ReadError("simulated") if failed else None))

    def _taken(self, ticket: int) -> Sequence[Page]:
        answer = self.answers.pop(ticket)
        assert isinstance(answer, Wake)
        return answer.pages

    def _begin_read(self, read: ReadPages) -> None:
        self.bytes_read += read.size
        if self.building:
            self.landed(read, failed=False)
        else:
            self._read(read)

    def _begin_write(self, write: WritePages) -> None:
        ended = PagesWritten(write.write)
        if self.building:
            self.post(ended)
        else:
            self._write(write.size, lambda: self.post(ended))
