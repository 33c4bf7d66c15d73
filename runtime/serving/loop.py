"""The loop that computes all answers: it takes requests, starts and pauses them, and moves their strands on."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from ...tiering.errors import BudgetTooSmall, Closed, PenstockError, PromptTooLong, QueueFull, TimedOut
from ...tiering.serving.admission import Admission, Room, Ticket
from ...tiering.serving.limit import ReadingLimit
from ..kv.cache.cache import PagedCache
from ..kv.cache.room import room_of
from ..loading.handle import handle
from ..modules.lockstep import Lockstep, Strand
from ..modules.model_forward import Rounds
from .answer import compute_answer
from .common import Common
from .embedding import compute_embedding
from .requests import Passage, Request, Token

Batch = Literal["exact", "fast", "auto"]

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

    def __init__(self, model: Any, room: Room, batch: Batch, *, share: float) -> None:
        """``share`` is as for Lockstep."""
        self._model, self._share = model, share
        self._limit = ReadingLimit() if batch == "auto" else None
        self.exact = batch != "fast"
        """Whether answers have the bits of the same request alone, as things are now."""
        self._changed = threading.Condition()
        self._admission = Admission(room)
        self._asked: dict[int, _Asked] = {}
        self._strands: dict[int, Strand] = {}
        self._caches: dict[int, PagedCache] = {}
        self._common = Common(handle(model))
        self._held: list[int] = []  # have a row, and wait for a beginning that another one computes
        self._cancelled: list[int] = []
        self._stopped: BaseException | None = None
        self.tokens = 0
        """Tokens that were told."""

    def offer(self, ticket: Ticket, request: Request | Passage, tell: Tell) -> None:
        """Let ``request`` wait for its turn. Raises QueueFull, Closed, and PromptTooLong or BudgetTooSmall where there
        will never be room for its keys and values."""
        with self._changed:
            if self._stopped is not None:
                raise self._stopped
            if not self._admission.fits(ticket):
                raise self._no_room(ticket)
            if not self._admission.offer(ticket):
                after = self._admission.pace.refuse(time.monotonic())
                raise QueueFull(f"as many requests wait as may wait; try again in {after:.0f} s", after)
            self._asked[ticket.number] = _Asked(request, tell)
            if isinstance(request, Request):
                self._common.offer(ticket.number, request.prompt)
            self._changed.notify()

    def most_tokens(self, limit: int) -> int:
        """The most tokens, up to ``limit``, that there is room for keys and values for, as far as is known."""
        kv = self._admission.room.kv
        return limit if kv is None else kv.most_tokens(limit)

    def _no_room(self, ticket: Ticket) -> PenstockError:
        most = self.most_tokens(ticket.tokens)
        if not most:
            return BudgetTooSmall("[kv] host has no room for the keys and values of a single token; raise it")
        return PromptTooLong(
            f"[kv] host and [kv] flash have room for the keys and values of {most} tokens, the prompt and its answer "
            f"may have {ticket.tokens}; shorten the prompt, ask for fewer new tokens, or raise them"
        )

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
                self._find_room(rounds)
                lockstep = Lockstep(self._model, forwards.leased, forwards.divided, exact=self.exact)
                try:
                    self._go_round(lockstep, rounds.begin, rounds.end)
                finally:
                    lockstep.close()
        except BaseException as error:
            self.stop(error)
        finally:
            self._end_all()

    def _find_room(self, rounds: Rounds) -> None:
        """Find what keys and values need, where they are in pages: by computing a token."""
        paged = handle(self._model).paged
        if paged is None:
            return
        rounds.begin()
        cache = paged.new_cache()
        self._model(
            torch.zeros(1, 1, dtype=torch.int64, device=self._model.device), past_key_values=cache, use_cache=True
        )
        rounds.end()
        kv = room_of(cache)
        cache.reset()
        with self._changed:
            self._admission.room = replace(self._admission.room, kv=kv)

    def _go_round(self, lockstep: Lockstep, begin: Callable[[], None], end: Callable[[], None]) -> None:
        began: tuple[float, float] | None = None
        while self._stopped is None:
            self._end_cancelled(lockstep)
            if lockstep.begins:
                if self._limit is not None and began is not None:
                    now, waited = self._clocks()
                    self._limit.note(now - began[0], waited - began[1])
                    lockstep.exact = self.exact = self._limit.exact
                self._admit(lockstep)
                if lockstep.begins and not lockstep.waits:
                    end()
                    began = None
                    self._wait()
                    continue
                began = self._clocks()
                begin()
            lockstep.advance(self._share)

    def _clocks(self) -> tuple[float, float]:
        """What time it is, and how long computing has waited for reads until now, in seconds."""
        paged, waited = handle(self._model).paged, handle(self._model).forwards.stall_seconds
        if paged is not None:
            waited += paged.tier.pool.counters.stall_seconds
        return time.monotonic(), waited

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
        for ticket in changes.unfit:
            self._finish(ticket.number, self._no_room(ticket), lockstep)
        for ticket in changes.pause:
            if ticket.number in self._strands:
                lockstep.pause(self._strands[ticket.number], True)
                self._common.end(ticket.number)
            if ticket.number in self._caches:
                self._caches[ticket.number].park()
        for ticket in changes.resume:
            if ticket.number in self._strands:
                lockstep.pause(self._strands[ticket.number], False)
        paused = {ticket.number for ticket in self._admission.paused}
        held, self._held = self._held, [number for number in self._held if number in paused]
        for number in (*held, *(ticket.number for ticket in changes.start)):
            if number not in paused:
                self._start(number, lockstep)

    def _start(self, number: int, lockstep: Lockstep) -> None:
        asked = self._asked.get(number)
        if asked is None:
            return
        request = asked.request
        if isinstance(request, Request) and self._common.waits(number):
            self._held.append(number)
            return

        def tell(token: Token) -> None:
            self.tokens += 1
            asked.tell(token)
            if token.finish is not None:
                self._forget(number)

        def tell_embedding(embedding: torch.Tensor) -> None:
            asked.tell(embedding)
            self._forget(number)

        def ended(_: object, error: BaseException | None) -> None:
            self._let_go(number)
            if number in self._asked:
                self._finish(number, error or PenstockError("transformers ended the answer without a reason"), lockstep)

        if isinstance(request, Passage):
            work = partial(compute_embedding, self._model, request, tell_embedding)
        else:
            paged = handle(self._model).paged
            if paged is not None:
                self._caches[number] = paged.new_cache()
            cache, begins = self._caches.get(number), self._common.begin(number)
            work = partial(compute_answer, self._model, request, tell, cache, begins)
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
        strand = self._strands.get(number)
        if strand is not None:
            lockstep.cancel(strand)
        self._let_go(number)
        asked = self._forget(number)
        if asked is not None and error is not None:
            asked.tell(error)

    def _let_go(self, number: int) -> None:
        self._strands.pop(number, None)
        if (cache := self._caches.pop(number, None)) is not None:
            cache.reset()  # its room is given to the next

    def _forget(self, number: int) -> _Asked | None:
        with self._changed:
            self._admission.end(number)
            self._common.end(number)
            return self._asked.pop(number, None)

    def _end_all(self) -> None:
        with self._changed:
            asked, self._asked = [*self._asked.values()], {}
        for each in asked:
            each.tell(self._stopped or Closed("this engine was closed"))
