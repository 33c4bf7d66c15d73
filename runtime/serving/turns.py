"""Several models that take turns with the memory: each has an engine that takes requests at any time."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from ...kernels.closing import Closing
from ...tiering.errors import Closed, PenstockError, QueueFull, TimedOut
from ...tiering.serving.turns import Step, Turns
from .engine import Engine, Limits
from .loop import Listener, Tell
from .requests import Passage, Request, Token


class Opened(NamedTuple):
    """A model that has the memory."""

    model: Any
    engine: Engine


Open = Callable[[], Opened]
"""Loads a model."""


class _Asked(NamedTuple):
    request: Request | Passage
    tell: Tell
    deadline: float | None


class ModelTurns(Closing):
    """Loads models in turn, on a thread of its own, and gives each the requests that wait for it."""

    def __init__(self, openers: Sequence[Open], *, queue: int, patience: float) -> None:
        """At most ``queue`` requests wait for a turn, those too that begin with it. ``patience`` is as for Turns."""
        self._openers, self._queue = openers, queue
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._turns = Turns(patience)
        self._asked: dict[int, _Asked] = {}
        self._begun: dict[int, tuple[Engine, int]] = {}
        self._opened: Opened | None = None
        self._told = [0] * len(openers)
        self._stopped: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="penstock-turns", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> BaseException | None:
        """As Engine.ended."""
        return self._stopped

    def offer(self, model: int, request: Request | Passage, tell: Tell) -> int:
        """Let ``request``, which was checked, wait for its turn. Raises QueueFull and Closed."""
        deadline = None if request.timeout is None else time.monotonic() + request.timeout
        with self._changed:
            if self._stopped is not None:
                raise self._stopped
            if len(self._turns.waiting) >= self._queue:
                raise QueueFull("as many requests wait as may wait; try again later")
            number = next(self._numbers)
            self._asked[number] = _Asked(request, tell, deadline)
            self._turns.offer(number, model, time.monotonic())
            self._changed.notify_all()
        return number

    def cancel(self, number: int) -> None:
        """End a request, wherever it is. Nothing more is told. Idempotent."""
        with self._changed:
            self._asked.pop(number, None)
            begun = self._begun.pop(number, None)
            self._turns.end(number)
            self._changed.notify_all()
        if begun is not None:
            engine, inner = begun
            engine.cancel(inner)

    def present(self, model: int) -> Opened | None:
        """``model``, if it has the memory now."""
        return self._opened if self._turns.current == model else None

    def counts(self, model: int) -> dict[str, int]:
        """As Engine.counts, of the requests to ``model``."""
        with self._changed:
            waiting = sum(each.model == model for each in self._turns.waiting)
            opened = self.present(model)
        found = {"running": 0, "waiting": 0, "paused": 0} if opened is None else opened.engine.counts()
        return {**found, "waiting": found["waiting"] + waiting}

    def tokens(self, model: int) -> int:
        """Tokens of all answers of ``model`` so far."""
        opened = self.present(model)
        return self._told[model] + (0 if opened is None else opened.engine.tokens)

    def close(self) -> None:
        """End all requests, with Closed, and give the memory back. Idempotent."""
        with self._changed:
            self._stopped = self._stopped or Closed("this engine was closed")
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (step := self._next()) is not None:
                if step.switch is not None:
                    self._switch(step.switch)
                for number in step.start:
                    self._start(number)
        except BaseException as error:
            self._stopped = self._stopped or error
        finally:
            self._shut()
            with self._changed:
                left, self._asked = [*self._asked.values()], {}
            for asked in left:
                asked.tell(self._stopped or Closed("this engine was closed"))

    def _next(self) -> Step | None:
        """What to do next; None at the end."""
        while True:
            self._end_late()
            with self._changed:
                if self._stopped is not None:
                    return None
                step = self._turns.decide(time.monotonic())
                if step != Step():
                    return step
                self._changed.wait(self._patience())

    def _patience(self) -> float | None:
        """Seconds until a request that waits is late."""
        waiting = [self._asked[each.number].deadline for each in self._turns.waiting if each.number in self._asked]
        first = min((deadline for deadline in waiting if deadline is not None), default=None)
        return None if first is None else max(0.0, first - time.monotonic())

    def _end_late(self) -> None:
        now = time.monotonic()
        with self._changed:
            waiting = [each.number for each in self._turns.waiting]
        for number in waiting:
            asked = self._asked.get(number)
            if asked is not None and asked.deadline is not None and asked.deadline <= now:
                self._end(number, TimedOut("the request was not answered in the time that it had"))

    def _switch(self, model: int) -> None:
        """Give the memory to ``model``. What goes wrong is told to those who wait for it."""
        self._shut()
        try:
            opened = self._openers[model]()
        except Exception as error:
            with self._changed:
                numbers = [each.number for each in self._turns.waiting if each.model == model]
            for number in numbers:
                self._end(number, error)
            return
        with self._changed:
            self._opened = opened
            self._turns.begin(model)

    def _shut(self) -> None:
        """Take the memory away from the model that has it."""
        with self._changed:
            opened, self._opened, model = self._opened, None, self._turns.current
            if opened is not None and model is not None:
                self._told[model] += opened.engine.tokens
            self._turns.begin(None)
        if opened is not None:
            opened.engine.close()
            opened.model.penstock.close()

    def _start(self, number: int) -> None:
        asked, opened = self._asked.get(number), self._opened
        if asked is None or opened is None:
            return
        left = None if asked.deadline is None else max(0.0, asked.deadline - time.monotonic())
        request = replace(asked.request, timeout=left)
        tell = partial(self._hear, number)
        try:
            if isinstance(request, Passage):
                inner = opened.engine.submit_passage(request, tell)
            else:
                inner = opened.engine.submit(request, tell)
        except PenstockError as error:
            self._end(number, error)
            if opened.engine.ended is not None:  # it cannot go on: the next request loads it anew
                self._shut()
            return
        with self._changed:
            if number in self._asked:
                self._begun[number] = opened.engine, inner
                return
        opened.engine.cancel(inner)  # it was cancelled meanwhile, or has ended

    def _hear(self, number: int, answer: Token | torch.Tensor | BaseException) -> None:
        """An engine tells something."""
        if isinstance(answer, Token) and answer.finish is None:
            asked = self._asked.get(number)
            if asked is not None:
                asked.tell(answer)
            return
        self._end(number, answer)

    def _end(self, number: int, answer: Any) -> None:
        """A request ends with ``answer``."""
        with self._changed:
            asked = self._asked.pop(number, None)
            self._begun.pop(number, None)
            self._turns.end(number)
            self._changed.notify_all()
        if asked is not None:
            asked.tell(answer)


class EngineInTurn(Engine):
    """The engine of one model among several. It takes requests also while another model has the memory."""

    def __init__(self, turns: ModelTurns, model: int, limits: Limits, rows: int) -> None:
        """``limits`` are those of the model, which need not have the memory now. ``rows`` are answered at a time."""
        self._turns, self._number, self.rows = turns, model, rows
        self._positions, self._vocabulary = limits

    def submit(self, request: Request, listener: Listener) -> int:
        """As Engine.submit."""
        self._check(request)
        return self._turns.offer(self._number, request, listener)

    def submit_passage(self, passage: Passage, listener: Callable[[torch.Tensor | BaseException], None]) -> int:
        """As Engine.submit_passage."""
        self._check_prompt(passage.prompt)
        return self._turns.offer(self._number, passage, listener)

    def cancel(self, number: int) -> None:
        """As Engine.cancel."""
        self._turns.cancel(number)

    def counts(self) -> dict[str, int]:
        """As Engine.counts."""
        return self._turns.counts(self._number)

    @property
    def ended(self) -> BaseException | None:
        """As Engine.ended."""
        return self._turns.ended

    @property
    def tokens(self) -> int:
        """As Engine.tokens."""
        return self._turns.tokens(self._number)

    def room(self, prompt: int) -> int | None:
        """As Engine.room, as far as is known of a model that is not in memory."""
        opened = self._turns.present(self._number)
        if opened is not None:
            return opened.engine.room(prompt)
        return None if self._positions is None else max(0, self._positions - prompt + 1)

    @property
    def exact(self) -> bool:
        """As Engine.exact; of a model that is not in memory: True."""
        opened = self._turns.present(self._number)
        return opened is None or opened.engine.exact

    @property
    def model(self) -> Any | None:
        """As Engine.model."""
        opened = self._turns.present(self._number)
        return None if opened is None else opened.model

    def close(self) -> None:
        """As Engine.close. The other models end, too."""
        self._turns.close()
