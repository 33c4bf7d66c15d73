"""Questions to an engine that answers as the test wants."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.runtime.server.answers.asking import Answers, Question, Step
from penstock.runtime.server.answers.journal import Journal
from penstock.runtime.server.answers.meters import Meters
from penstock.runtime.serving.requests import Request, Sampling, Token
from penstock.runtime.serving.text.replies import Said
from penstock.tiering.errors import QueueFull, TimedOut
from tests.support.chat_models import byte_tokenizer

TOKENIZER = byte_tokenizer()


class Engine:
    """Takes ``most`` requests."""

    def __init__(self, most: int = 10) -> None:
        self.most = most
        self.asked: list[Request] = []
        self.tell: list[Callable[[Token | BaseException], None]] = []
        self.cancelled: list[int] = []

    def submit(self, request: Request, listener: Callable[[Token | BaseException], None]) -> int:
        if len(self.asked) == self.most:
            raise QueueFull("full")
        self.asked.append(request)
        self.tell.append(listener)
        return len(self.asked) - 1

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)

    def say(self, number: int, text: str, finish: Any = None) -> None:
        for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
            self.tell[number](Token(token, finish=finish))


def asked(engine: Engine, *questions: Question) -> Answers:
    served: Any = SimpleNamespace(
        engine=engine,
        tokenizer=TOKENIZER,
        ends=frozenset({2}),
        meters=Meters().of("m"),
        journal=Journal(),
        room=lambda prompt: 50 - prompt,
    )
    return Answers(served, *questions)


def question(**options: Any) -> Question:
    return Question(**{"prompt": [5, 6], "sampling": Sampling(), **options})


async def test_each_answer_has_a_seed_of_its_own_and_the_room_that_is_left():
    engine = Engine()
    asked(engine, question(count=2, seed=7), question(prompt=[5], seed=7, max_tokens=3))
    assert [request.sampling.seed for request in engine.asked] == [7, 8, 7]
    assert [request.max_tokens for request in engine.asked] == [48, 48, 3]


async def test_an_answer_that_stops_at_a_string_is_ended_while_others_go_on():
    engine = Engine()
    answers = asked(engine, question(count=2, stops=["x"]))
    steps = answers.steps()
    engine.say(0, "abx")
    assert [(await anext(steps)).ending for _ in range(3)] == [None, None, "stop"]
    assert engine.cancelled == [0]
    engine.say(0, "more")
    engine.say(1, "y", finish="length")
    assert [(step.index, step.pieces, step.ending) async for step in steps] == [(1, [Said("content", "y")], "length")]
    assert {*engine.cancelled} == {0, 1}


async def test_all_are_ended_if_one_is_refused():
    engine = Engine(most=2)
    with pytest.raises(QueueFull):
        asked(engine, question(count=3))
    assert engine.cancelled == [0, 1]


async def test_an_error_ends_all_answers_to_the_request():
    engine = Engine()
    steps = asked(engine, question(count=2)).steps()
    engine.tell[1](TimedOut("late"))
    with pytest.raises(TimedOut, match="late"):
        await anext(steps)
    assert engine.cancelled == [0, 1]


async def test_leaving_ends_all_answers():
    engine = Engine()
    answers = asked(engine, question(count=2))
    steps = answers.steps()
    engine.say(1, "a")
    assert isinstance(await anext(steps), Step)
    await steps.aclose()
    assert engine.cancelled == [0, 1]
    assert (answers.prompt_tokens, answers.clock.tokens) == (2, 1)
