"""A model in this process answers."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ..serving.defaults import ends_of, positions_of, room_behind
from ..serving.engine import Engine
from ..serving.requests import Request, Sampling
from ..serving.text.chats import ChatTemplate
from ..serving.text.replies import PlainReader, Said, find_response_template, template_reader
from ..serving.text.writing import AnswerText
from .partner import Took


class LocalPartner:
    """``model`` answers over ``engine``. Its prompts are stored at once, where any are stored: the next one begins with
    them."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        engine: Engine,
        name: str,
        sampling: Sampling,
        *,
        seed: int | None = None,
        stops: Sequence[str] = (),
        most: int | None = None,
    ) -> None:
        """Without a ``seed`` each answer is by chance. ``most`` are the most tokens of an answer."""
        self.name, self.latest = name, None
        self._model, self._tokenizer, self._engine = model, tokenizer, engine
        self._sampling, self._seed, self._stops, self._most = sampling, seed, stops, most
        self._template = ChatTemplate(tokenizer)
        self._ends, self._positions = ends_of(model), positions_of(model)
        self._replies = find_response_template(model, tokenizer)

    latest: Took | None

    async def answer(self, messages: Sequence[Mapping[str, str]], again: int) -> AsyncGenerator[Said, None]:
        """Yield the answer. Raises RequestError, PromptTooLong, and what computing raises."""
        asked = time.perf_counter()
        prompt = await asyncio.to_thread(self._template.encode, messages)
        request = self._request(prompt, again)
        await asyncio.to_thread(self._wait_for_prompts)
        text = self._text(prompt)
        first, tokens, cached = 0.0, 0, 0
        try:
            async with aclosing(self._engine.generate(request)) as answer:
                async for token in answer:
                    tokens, cached = tokens + 1, max(cached, token.cached)
                    first = first or time.perf_counter() - asked
                    for piece in text.feed(token):
                        if isinstance(piece, Said):
                            yield piece
                    if text.ending is not None:
                        break
        finally:
            self.latest = Took(len(prompt), cached, tokens, first, time.perf_counter() - asked, text.ending)

    def about(self) -> list[str]:
        """What the model's memory and drive did."""
        stats = self._model.penstock.stats()
        problem = stats.prefix_problem
        return [str(stats), *([f"prompts are not kept: {problem}"] if problem else [])]

    def _request(self, prompt: list[int], again: int) -> Request:
        seed = secrets.randbits(62) if self._seed is None else self._seed + again
        room = self._most or room_behind(len(prompt), self._positions)
        return Request(prompt, room, replace(self._sampling, seed=seed), keep=True)

    def _text(self, prompt: list[int]) -> AnswerText:
        told = self._replies is not None
        reader = template_reader(self._tokenizer, self._replies, prompt, None) if told else PlainReader()
        return AnswerText(self._tokenizer, reader, special=told, stops=self._stops, ends=self._ends)

    def _wait_for_prompts(self) -> None:
        """Wait until the latest prompt is stored: reading takes less time than computing."""
        prefixes = self._model.penstock.prefixes
        if prefixes is not None:
            prefixes.flush()


def forget_prompts(model: Any) -> None:
    """Remove what is stored of ``model`` as it is now, in its namespace. Raises PrefixError and OSError."""
    prefixes = model.penstock.prefixes
    if prefixes is not None:
        prefixes.flush()
        prefixes.store.prune(root=prefixes.root)
