"""Questions to a served model, and their answers as they come."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from ....tiering.errors import RequestError
from ...serving.requests import Request, Sampling, Token
from ...serving.text.grammars import NewMask
from ...serving.text.replies import Piece, PlainReader, Reader
from ...serving.text.writing import AnswerText, Ending
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


@dataclass(frozen=True, slots=True)
class Step:
    """A new ``token`` of the answer ``index``, the pieces that it completes, and ``ending``: why it is the last one."""

    index: int
    token: Token
    pieces: Sequence[Piece]
    ending: Ending | None
    stop_string: str | None = None


@dataclass(slots=True)
class Clock:
    """When things happened, in seconds of one clock."""

    asked: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float | None = None
    tokens: int = 0

    def note(self) -> float | None:
        """A token has come. Returns the seconds until the first one, if it is that."""
        self.last = time.perf_counter()
        self.tokens += 1
        if self.first is not None:
            return None
        self.first = self.last
        return self.first - self.asked

    @property
    def prompt_seconds(self) -> float:
        """Seconds until the first token: waiting, and reading the prompt."""
        return (self.first or time.perf_counter()) - self.asked

    @property
    def answer_seconds(self) -> float:
        """Seconds from the first token to the last one."""
        return 0.0 if self.first is None or self.last is None else self.last - self.first

    def report(self) -> dict[str, float | None]:
        """For people who ask how fast it was."""
        rate = (self.tokens - 1) / self.answer_seconds if self.answer_seconds else None
        return {"first_token_s": self.prompt_seconds, "answer_s": self.answer_seconds, "tokens_per_second": rate}


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
                    raise token
                self._served.meters.token(self.clock.note())
                question = self._questions[index]
                self._cached[question] = max(self._cached[question], token.cached)
                text = self._texts[index]
                pieces = text.feed(token)
                if text.ending is not None:
                    self._served.meters.ended(text.ending)
                    open_answers.discard(index)
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
    mask = None if question.mask is None else question.mask(len(prompt))
    return Request(
        prompt,
        question.max_tokens or served.room(len(prompt)),
        replace(question.sampling, seed=seed),
        top_logprobs=question.top_logprobs,
        processors=[] if mask is None else [mask],
        forces=None if mask is None else mask.forces,
        client=question.client,
    )
