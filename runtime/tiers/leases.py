"""The leases of one request: taken as they arrive, given back together."""

import queue
from collections.abc import Iterator, Sequence
from typing import Protocol

from ...kernels.closing import Closing
from ...tiering.events import Grant, Refuse, Slot
from ...tiering.units import BlockId

Inbox = queue.SimpleQueue[Grant | Refuse]
"""Where the answers to one request arrive."""


class Lender(Protocol):
    """The bridge that grants leases, as they see it."""

    def wait(self, inbox: Inbox) -> Grant | Refuse:
        """The next answer in ``inbox``."""

    def forget(self, ticket: int, inbox: Inbox, *, withdraw: bool) -> None:
        """Nothing more is taken for ``ticket``; ``withdraw`` cancels what it still waits for or did not take."""


class Leases(Closing, Iterator[tuple[BlockId, Slot]]):
    """The leases of one request, taken as they arrive, those already resident first.

    Iterating waits for the next one. It raises the error of its read, or Closed. ``close`` before the end, or the
    garbage collector, cancels the rest and gives back what was not taken yet. The lender is told of the end once.
    """

    def __init__(self, lender: Lender, ticket: int, stream: int, count: int) -> None:
        """``count`` blocks are asked for under the number ``ticket``, for the thread ``stream``."""
        self._lender, self.ticket, self.stream, self.left = lender, ticket, stream, count
        self._open = True
        self.inbox: Inbox = queue.SimpleQueue()
        self._grants: dict[BlockId, Grant] = {}  # taken, with residuals

    def residual_slots(self, block: BlockId) -> tuple[Slot, ...]:
        """Where the residuals of ``block`` lie that are leased with it."""
        grant = self._grants.get(block)
        return grant.residual_slots if grant is not None else ()

    def leased(self, blocks: Sequence[BlockId]) -> list[BlockId]:
        """All blocks to give back for ``blocks``, which have been taken: these and their residuals."""
        if not self._grants:
            return list(blocks)
        return [each for block in blocks for each in (self._grants[block].leased if block in self._grants else [block])]

    def __next__(self) -> tuple[BlockId, Slot]:
        if not self.left:
            if self._open:  # nothing was asked for
                self.close()
            raise StopIteration
        try:
            answer = self.inbox.get_nowait()
        except queue.Empty:
            answer = self._lender.wait(self.inbox)
        return self._take(answer)

    def here(self) -> list[tuple[BlockId, Slot]]:
        """The leases that have arrived and were not taken yet. Does not wait."""
        found = []
        while self.left:
            try:
                answer = self.inbox.get_nowait()
            except queue.Empty:
                break
            found.append(self._take(answer))
        return found

    def close(self) -> None:
        """Give up the rest. Idempotent."""
        if self._open:
            self._open = False
            left, self.left = self.left, 0
            self._lender.forget(self.ticket, self.inbox, withdraw=left > 0)

    def __del__(self) -> None:
        if self._open:
            self.close()

    def _take(self, answer: Grant | Refuse) -> tuple[BlockId, Slot]:
        if isinstance(answer, Refuse):
            self.close()
            raise answer.error
        self.left -= 1
        if answer.residual_slots:
            self._grants[answer.block] = answer
        if not self.left:
            self.close()
        return answer.block, answer.slot
