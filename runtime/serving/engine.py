"""Answers to many requests at a time from one model, on a thread of its own."""

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch

from ...kernels.closing import Closing
from ...tiering.errors import PromptTooLong, QueueFull, RequestError
from ...tiering.serving.admission import Room, Ticket
from .loop import Listener, Loop
from .requests import Passage, Request, Token

Batch = Literal["exact", "fast"]


class Limits(NamedTuple):
    """What requests are held to: positions of a sequence, if there is a bound, and tokens of the vocabulary."""

    positions: int | None
    vocabulary: int


def limits_of(model: Any) -> Limits:
    """The limits of ``model``."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return Limits(positions, model.get_input_embeddings().num_embeddings)


class Engine(Closing):
    """Answers requests with ``model``, which penstock has loaded, all at a time: each weight that is read serves all.

    Thread-safe. Whoever computes with the model otherwise meanwhile shares its memory as other threads do.
    """

    def __init__(self, model: Any, *, batch: Batch = "exact", rows: int = 32, queue: int = 256) -> None:
        """``batch``: "exact", every answer has the bits of the same request alone; "fast", torch may sum several rows
        in another order. ``rows`` are answered at a time, ``queue`` more wait."""
        self._model = model
        self._positions, self._vocabulary = limits_of(model)
        self._numbers = itertools.count()
        self.rows = rows
        """Requests that are answered at a time."""
        self._loop = Loop(model, Room(rows, queue), exact=batch == "exact", share=1.0)
        self._thread = threading.Thread(target=self._loop.run, name="penstock-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, listener: Listener) -> int:
        """Have ``request`` answered. Returns a number for ``cancel``. ``listener`` is called on the engine's thread.

        Raises RequestError, PromptTooLong, QueueFull and Closed.
        """
        self._check(request)
        number, tokens = next(self._numbers), len(request.prompt) + request.max_tokens
        deadline = None if request.timeout is None else time.monotonic() + request.timeout
        ticket = Ticket(number, tokens, request.client, request.priority, deadline)
        if not self._loop.offer(ticket, request, listener):
            raise QueueFull("as many requests wait as may wait; try again later")
        return number

    def submit_passage(self, passage: Passage, listener: Callable[[torch.Tensor | BaseException], None]) -> int:
        """As ``submit``. ``listener`` is told the embedding: float32 [width]."""
        self._check_prompt(passage.prompt)
        number = next(self._numbers)
        deadline = None if passage.timeout is None else time.monotonic() + passage.timeout
        ticket = Ticket(number, 0, passage.client, passage.priority, deadline)
        if not self._loop.offer(ticket, passage, listener):
            raise QueueFull("as many requests wait as may wait; try again later")
        return number

    async def embed(self, passage: Passage) -> torch.Tensor:
        """The embedding of ``passage``, float32 [width]. Cancelling the task ends the work. Raises as ``generate``."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[torch.Tensor | BaseException] = loop.create_future()

        def listen(answer: torch.Tensor | BaseException) -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(_settle, told, answer)

        number = self.submit_passage(passage, listen)
        try:
            answer = await told
        finally:
            self.cancel(number)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def cancel(self, number: int) -> None:
        """End a request. Nothing more is told to its listener. Idempotent."""
        self._loop.cancel(number)

    async def generate(self, request: Request) -> AsyncGenerator[Token, None]:
        """Yield the tokens of the answer to ``request``. Leaving the loop cancels it. Raises as ``submit``, TimedOut,
        and what computing raises."""
        loop, answers = asyncio.get_running_loop(), asyncio.Queue[Token | BaseException]()

        def listen(answer: Token | BaseException) -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(answers.put_nowait, answer)

        number = self.submit(request, listen)
        try:
            while True:
                token = _token_of(await answers.get())
                yield token
                if token.finish is not None:
                    return
        finally:
            self.cancel(number)

    def answer(self, request: Request) -> Iterator[Token]:
        """As ``generate``, without asyncio."""
        answers = queue.SimpleQueue[Token | BaseException]()
        number = self.submit(request, answers.put)
        try:
            while True:
                token = _token_of(answers.get())
                yield token
                if token.finish is not None:
                    return
        finally:
            self.cancel(number)

    def counts(self) -> dict[str, int]:
        """Requests that are ``running``, ``waiting`` and ``paused``."""
        return self._loop.counts()

    @property
    def model(self) -> Any | None:
        """The model that computes; None while it is not in memory."""
        return self._model

    @property
    def ended(self) -> BaseException | None:
        """Why no requests are taken any more: Closed, or an error outside of all requests. None as long as they are."""
        return self._loop.ended

    @property
    def tokens(self) -> int:
        """Tokens of all answers so far."""
        return self._loop.tokens

    def close(self) -> None:
        """End all requests, with Closed, and the thread. The model stays. Idempotent."""
        self._loop.stop()
        self._thread.join()

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise RequestError("the prompt is empty")
        worst = next((token for token in prompt if not 0 <= token < self._vocabulary), None)
        if worst is not None:
            raise RequestError(f"the prompt has the token {worst}; the model has 0 to {self._vocabulary - 1}")
        if self._positions is not None and len(prompt) > self._positions:
            raise PromptTooLong(f"the prompt has {len(prompt)} tokens, the model has {self._positions} positions")

    def _check(self, request: Request) -> None:
        if request.max_tokens < 1:
            raise RequestError(f"max_tokens is {request.max_tokens}; ask for at least 1")
        self._check_prompt(request.prompt)
        needed = len(request.prompt) + request.max_tokens - 1  # the last one is not fed back
        if self._positions is not None and needed > self._positions:
            raise PromptTooLong(
                f"the prompt has {len(request.prompt)} tokens and {request.max_tokens} more are wanted, the model has "
                f"{self._positions} positions; shorten the prompt or ask for fewer"
            )


def _settle(told: "asyncio.Future[torch.Tensor | BaseException]", answer: torch.Tensor | BaseException) -> None:
    if not told.done():
        told.set_result(answer)


def _token_of(answer: Token | BaseException) -> Token:
    if isinstance(answer, BaseException):
        raise answer
    return answer
