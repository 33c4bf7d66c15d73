"""The loop that computes all answers: it takes requests, starts and pauses them, and moves their strands on."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from ...tiering.errors import Closed, PenstockError, TimedOut
from ...tiering.serving.admission import Admission, Room, Ticket
from ..loading.handle import handle
from ..modules.lockstep import Lockstep, Strand
from .answer import compute_answer
from .embedding import compute_embedding
from .requests import Passage, Request, Token

Listener = Callable[[Token | BaseException], None]
"""Is told each token of an answer, or the error that ended it, from the thread of the loop."""
Tell = Callable[[Any], None]
"""As Listener; for a Passage it is told the embedding."""


class _Asked(NamedTuple):
    request: Request | Passage
    tell: Tell


class Loop:
    """The answers of one model. ``run`` computes them on the calling thread, until ``stop``. All else may be called
    from any thread."""

    def __init__(self, model: Any, room: Room, *, exact: bool, share: float) -> None:
        """``exact`` and ``share`` are as for Lockstep."""
        self._model, self._exact, self._share = model, exact, share
        self._changed = threading.Condition()
        self._admission = Admission(room)
        self._asked: dict[int, _Asked] = {}
        self._strands: dict[int, Strand] = {}
        self._cancelled: list[int] = []
        self._stopped: BaseException | None = None
        self.tokens = 0
        """Tokens that were told."""

    def offer(self, ticket: Ticket, request: Request | Passage, tell: Tell) -> bool:
        """Let ``request`` wait for its turn. Returns False if the queue is full. Raises Closed."""
        with self._changed:
            if self._stopped is not None:
                raise self._stopped
            if not self._admission.offer(ticket):
                return False
            self._asked[ticket.number] = _Asked(request, tell)
            self._changed.notify()
        return True

    def cancel(self, number: int) -> None:
        """End a request, wherever it is. Nothing more is told. Idempotent."""
        with self._changed:
            if number in self._asked:
                self._cancelled.append(number)
                self._changed.notify()

    def stop(self, reason: BaseException | None = None) -> None:
        """End ``run``, which tells ``reason`` to all who wait."""
        with self._changed:
            self._stopped = self._stopped or reason or Closed("this engine was closed")
            self._changed.notify()

    @property
    def ended(self) -> BaseException | None:
        """What has ended ``run``, or will, if something has."""
        return self._stopped

    def counts(self) -> dict[str, int]:
        """Requests that run, wait, and pause."""
        with self._changed:
            admission = self._admission
            return {
                "running": len(admission.running),
                "waiting": len(admission.waiting),
                "paused": len(admission.paused),
            }

    def run(self) -> None:
        """Compute answers."""
        try:
            forwards = handle(self._model).forwards
            with forwards.session() as rounds:
                lockstep = Lockstep(self._model, forwards.leased, forwards.divided, exact=self._exact)
                try:
                    self._go_round(lockstep, rounds.begin, rounds.end)
                finally:
                    lockstep.close()
        except BaseException as error:
            self.stop(error)
        finally:
            self._end_all()

    def _go_round(self, lockstep: Lockstep, begin: Callable[[], None], end: Callable[[], None]) -> None:
        while self._stopped is None:
            self._end_cancelled(lockstep)
            if lockstep.begins:
                self._admit(lockstep)
                if lockstep.begins and not lockstep.waits:
                    end()
                    self._wait()
                    continue
                begin()
            lockstep.advance(self._share)

    def _wait(self) -> None:
        """Wait until there is something to do."""
        with self._changed:
            if self._stopped is None and not self._cancelled and not self._admission.waiting:
                deadline = self._admission.next_deadline()
                self._changed.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _admit(self, lockstep: Lockstep) -> None:
        with self._changed:
            changes = self._admission.decide(time.monotonic())
        for ticket in changes.late:
            self._finish(ticket.number, TimedOut("the request was not answered in the time that it had"), lockstep)
        for ticket in changes.pause:
            self._strands[ticket.number].paused = True
        for ticket in changes.resume:
            self._strands[ticket.number].paused = False
        for ticket in changes.start:
            self._start(ticket.number, lockstep)

    def _start(self, number: int, lockstep: Lockstep) -> None:
        asked = self._asked.get(number)
        if asked is None:
            return

        request = asked.request

        def tell(token: Token) -> None:
            self.tokens += 1
            asked.tell(token)
            if token.finish is not None:
                self._forget(number)

        def tell_embedding(embedding: torch.Tensor) -> None:
            asked.tell(embedding)
            self._forget(number)

        def ended(_: object, error: BaseException | None) -> None:
            self._strands.pop(number, None)
            if number in self._asked:
                self._finish(number, error or PenstockError("transformers ended the answer without a reason"), lockstep)

        if isinstance(request, Passage):
            work = partial(compute_embedding, self._model, request, tell_embedding)
        else:
            work = partial(compute_answer, self._model, request, tell)
        strand = lockstep.start(work, ended)
        if not strand.dead:
            self._strands[number] = strand

    def _end_cancelled(self, lockstep: Lockstep) -> None:
        if not self._cancelled:
            return
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
        for number in cancelled:
            self._finish(number, None, lockstep)

    def _finish(self, number: int, error: BaseException | None, lockstep: Lockstep) -> None:
        """End a request. ``error`` is told to who waits for it."""
        strand = self._strands.pop(number, None)
        if strand is not None:
            lockstep.cancel(strand)
        asked = self._forget(number)
        if asked is not None and error is not None:
            asked.tell(error)

    def _forget(self, number: int) -> _Asked | None:
        with self._changed:
            self._admission.end(number)
            return self._asked.pop(number, None)

    def _end_all(self) -> None:
        with self._changed:
            asked, self._asked = [*self._asked.values()], {}
        for each in asked:
            each.tell(self._stopped or Closed("this engine was closed"))
