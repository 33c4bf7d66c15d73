"""Questions to a served model, and their answers as they come."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from ....tiering.errors import RequestError
from ...serving.requests import Request, Sampling, Token
from ...serving.text.grammars import NewMask
from ...serving.text.replies import Piece, PlainReader, Reader
from ...serving.text.writing import AnswerText, Ending
from .clock import Clock
from .journal import Entry
from .served import ServedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt, and how it is to be answered, ``count`` times."""

    prompt: Sequence[int]
    max_tokens: int | None = None
    sampling: Sampling
    seed: int | None = None
    count: int = 1
    stops: Sequence[str] = ()
    top_logprobs: int | None = None
    mask: NewMask | None = None
    reader: Callable[[], Reader] = PlainReader
    special: bool = False
    """Whether the reader wants to see special tokens."""
    most_calls: int | None = None
    client: str = ""
    keep: bool = False
    """Whether the prompt is stored when it comes the first time."""


@dataclass(frozen=True, slots=True)
class Step:
    """A new ``token`` of the answer ``index``, the pieces that it completes, and ``ending``: why it is the last one."""

    index: int
    token: Token
    pieces: Sequence[Piece]
    ending: Ending | None
    stop_string: str | None = None


class Answers:
    """The answers to ``questions``, numbered through. They are asked for at once: raises RequestError, PromptTooLong,
    QueueFull, Closed.

    Made where an asyncio loop runs. Whoever makes it iterates over ``steps`` or closes it.
    """

    def __init__(self, served: ServedModel, *questions: Question) -> None:
        self.clock = Clock()
        self.prompt_tokens = sum(len(question.prompt) for question in questions)
        self.count = sum(question.count for question in questions)
        self._served, self._engine = served, served.engine
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Token | BaseException]]()
        self._numbers: list[int] = []
        self._texts: list[AnswerText] = []
        self._questions: list[int] = []
        self._cached = [0] * len(questions)
        self._entry = Entry(self.clock, self.prompt_tokens)
        try:
            for at, question in enumerate(questions):
                self._questions += [at] * question.count
                seed = secrets.randbits(62) if question.seed is None else question.seed
                for number in range(question.count):
                    self._submit(question, seed + number)
        except BaseException:
            self.close()
            raise
        served.meters.began(self.prompt_tokens)
        served.journal.add(self._entry)

    def _submit(self, question: Question, seed: int) -> None:
        listen = partial(self._listen, len(self._texts))
        self._texts.append(_text(self._served, question))
        self._numbers.append(self._engine.submit(_request(self._served, question, seed), listen))

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Yield what comes, until all answers have ended. Leaving it ends them. Raises what computing raises."""
        open_answers = set(range(len(self._texts)))
        try:
            while open_answers:
                index, token = await self._told.get()
                if index not in open_answers:
                    continue
                if isinstance(token, BaseException):
                    self._entry.ending = "error"
                    raise token
                self._served.meters.token(self.clock.note())
                question = self._questions[index]
                self._cached[question] = max(self._cached[question], token.cached)
                self._entry.cached = self.cached_tokens
                text = self._texts[index]
                pieces = text.feed(token)
                if text.ending is not None:
                    self._served.meters.ended(text.ending)
                    open_answers.discard(index)
                    if not open_answers:
                        self._entry.ending = text.ending
                    self._engine.cancel(self._numbers[index])
                yield Step(index, token, pieces, text.ending, text.stop_string)
        finally:
            self.close()

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were restored instead of computed, as far as is known."""
        return sum(self._cached)

    def close(self) -> None:
        """End all that has not ended. Idempotent."""
        self._entry.ending = self._entry.ending or "cancelled"
        for number in self._numbers:
            self._engine.cancel(number)

    def _listen(self, index: int, answer: Token | BaseException) -> None:
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._told.put_nowait, (index, answer))


def _text(served: ServedModel, question: Question) -> AnswerText:
    return AnswerText(
        served.tokenizer,
        question.reader(),
        special=question.special,
        stops=question.stops,
        ends=served.ends,
        most_calls=question.most_calls,
    )


def _request(served: ServedModel, question: Question, seed: int) -> Request:
    prompt = question.prompt
    if not prompt:
        raise RequestError("the prompt is empty")
    return Request(
        prompt,
        question.max_tokens or served.room(len(prompt)),
        replace(question.sampling, seed=seed),
        top_logprobs=question.top_logprobs,
        processors=[] if question.mask is None else [question.mask(len(prompt))],
        client=question.client,
        keep=question.keep,
    )
