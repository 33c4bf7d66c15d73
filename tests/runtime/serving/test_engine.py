"""The engine: requests come, wait, are answered, cancelled, late or refused; one that fails leaves the others."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.runtime.serving.engine import Engine
from penstock.runtime.serving.requests import Request, Sampling, Token
from penstock.tiering.errors import Closed, PromptTooLong, QueueFull, RequestError, TimedOut

PROMPT = [5, 6, 7, 8]
WAIT = 60


@pytest.fixture
def model(tiny_dense_folder: Path, store: Path) -> Iterator[Any]:
    with penstock.load(tiny_dense_folder, store=store) as loaded:
        yield loaded


@pytest.fixture
def engine(model: Any) -> Iterator[Engine]:
    with Engine(model, rows=2, queue=2) as made:
        yield made


class Gate:
    """A logits processor that holds its answer, and so the whole engine, until it is opened."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.reached.set()
        assert self._open.wait(WAIT)
        return scores

    def open(self) -> None:
        self._open.set()


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.errors: list[BaseException] = []
        self.ended = threading.Event()

    def __call__(self, answer: Token | BaseException) -> None:
        if isinstance(answer, BaseException):
            self.errors.append(answer)
            self.ended.set()
            return
        self.tokens.append(answer)
        if answer.finish is not None:
            self.ended.set()


def generated(model: Any, count: int, prompt: list[int] = PROMPT) -> list[int]:
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return [int(token) for token in out[0, len(prompt) :]]


def ids(engine: Engine, request: Request) -> list[int]:
    return [token.id for token in engine.answer(request)]


def test_an_answer_is_that_of_generate(engine: Engine, model: Any) -> None:
    tokens = [*engine.answer(Request(PROMPT, 6))]
    assert [token.id for token in tokens] == generated(model, 6)
    assert [token.finish for token in tokens] == [None] * 5 + ["length"]
    assert engine.tokens == 6


def test_answers_come_through_asyncio(engine: Engine, model: Any) -> None:
    async def ask(prompt: list[int]) -> list[int]:
        return [token.id async for token in engine.generate(Request(prompt, 5))]

    async def ask_all() -> list[list[int]]:
        return await asyncio.gather(ask([5]), ask([6, 7]), ask(PROMPT))

    assert asyncio.run(ask_all()) == [generated(model, 5, prompt) for prompt in ([5], [6, 7], PROMPT)]


def test_who_leaves_the_loop_cancels_its_request(engine: Engine) -> None:
    async def leave() -> None:
        async for _ in engine.generate(Request(PROMPT, 100)):
            break

    asyncio.run(leave())
    for _ in engine.answer(Request(PROMPT, 100)):
        break
    assert ids(engine, Request(PROMPT, 2))  # a round after the cancelling
    assert engine.counts() == {"running": 0, "waiting": 0, "paused": 0}


def test_the_end_token_and_the_caller_stop_an_answer(engine: Engine, model: Any) -> None:
    whole = generated(model, 8)
    stopped = [*engine.answer(Request(PROMPT, 8, until=lambda token: token == whole[3]))]
    at = whole.index(whole[3])
    assert [token.id for token in stopped] == whole[: at + 1]
    assert stopped[-1].finish == "stop"
    model.generation_config.eos_token_id = [whole[2]]
    ended = [*engine.answer(Request(PROMPT, 8))]
    assert [token.id for token in ended] == whole[: whole.index(whole[2]) + 1]
    assert ended[-1].finish == "stop"


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (Request([], 4), RequestError, "empty"),
        (Request([5], 0), RequestError, "max_tokens is 0"),
        (Request([5, 320], 4), RequestError, "token 320"),
        (Request([5, -1], 4), RequestError, "token -1"),
        (Request([5] * 200, 58), PromptTooLong, "256 positions"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    engine: Engine, request_: Request, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        next(engine.answer(request_))
    assert len(ids(engine, Request([5] * 200, 57))) <= 57


def test_a_full_queue_refuses_and_a_place_in_it_serves_the_next(engine: Engine, model: Any) -> None:
    gate, heard = Gate(), [Heard() for _ in range(5)]
    engine.submit(Request(PROMPT, 3, processors=[gate]), heard[0])
    assert gate.reached.wait(WAIT)
    numbers = [engine.submit(Request(PROMPT, 3), listener) for listener in heard[1:4]]
    with pytest.raises(QueueFull):
        engine.submit(Request(PROMPT, 3), heard[4])
    engine.cancel(numbers[0])
    gate.open()
    for listener in (heard[0], *heard[2:4]):
        assert listener.ended.wait(WAIT)
        assert [token.id for token in listener.tokens] == generated(model, 3)
    assert heard[1].tokens == heard[1].errors == []


def test_a_request_that_is_late_is_told_so_and_others_go_on(engine: Engine, model: Any) -> None:
    gate, late, other = Gate(), Heard(), Heard()
    engine.submit(Request(PROMPT, 50, processors=[gate], timeout=0.01), late)
    engine.submit(Request(PROMPT, 4), other)
    assert gate.reached.wait(WAIT)
    threading.Event().wait(0.02)  # its time passes
    gate.open()
    assert late.ended.wait(WAIT)
    assert other.ended.wait(WAIT)
    assert [type(error) for error in late.errors] == [TimedOut]
    assert [token.id for token in other.tokens] == generated(model, 4)


def test_an_error_of_one_request_is_told_to_it_alone(engine: Engine, model: Any) -> None:
    def fail(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > len(PROMPT) + 1:
            raise ArithmeticError("lost count")
        return scores

    failing, other = Heard(), Heard()
    engine.submit(Request(PROMPT, 6, processors=[fail]), failing)
    engine.submit(Request(PROMPT, 6), other)
    assert failing.ended.wait(WAIT)
    assert other.ended.wait(WAIT)
    assert [str(error) for error in failing.errors] == ["lost count"]
    assert len(failing.tokens) == 2
    assert [token.id for token in other.tokens] == generated(model, 6)


@pytest.mark.parametrize("who", ["engine", "model"])
def test_closing_tells_all_who_wait(model: Any, who: str) -> None:
    gate, heard = Gate(), [Heard() for _ in range(4)]
    engine = Engine(model, rows=2)
    engine.submit(Request(PROMPT, 50, processors=[gate]), heard[0])
    assert gate.reached.wait(WAIT)
    for listener in heard[1:]:
        engine.submit(Request(PROMPT, 50), listener)
    closing = threading.Thread(target=engine.close if who == "engine" else model.penstock.close)
    closing.start()
    gate.open()
    closing.join(WAIT)
    assert not closing.is_alive()
    for listener in heard:
        assert listener.ended.wait(WAIT)
        assert [type(error) for error in listener.errors] == [Closed]
    engine.close()
    with pytest.raises(Closed):
        next(engine.answer(Request(PROMPT, 2)))


def test_an_interactive_request_passes_those_of_a_batch(model: Any) -> None:
    order: list[str] = []
    with Engine(model, rows=1) as engine:
        ended = threading.Event()

        def listener(name: str) -> Callable[[Token | BaseException], None]:
            def listen(answer: Token | BaseException) -> None:
                assert isinstance(answer, Token)
                if name == "batch" and "batch" not in order:
                    engine.submit(Request(PROMPT, 3), listener("interactive"))
                if name not in order:
                    order.append(name)
                if answer.finish is not None:
                    order.append(f"{name} ended")
                if name == "batch" and answer.finish is not None:
                    ended.set()

            return listen

        engine.submit(Request(PROMPT, 40, priority="batch"), listener("batch"))
        assert ended.wait(WAIT)
    assert order == ["batch", "interactive", "interactive ended", "batch ended"]


def test_sampling_depends_on_the_seed_and_the_position_alone(engine: Engine) -> None:
    def sampled(seed: int, count: int) -> list[int]:
        return ids(engine, Request(PROMPT, count, Sampling(temperature=1.0, seed=seed)))

    assert sampled(1, 20) == sampled(1, 20)
    assert sampled(1, 20)[:9] == sampled(1, 9)
    assert len({tuple(sampled(seed, 8)) for seed in range(8)}) == 8


def test_sampling_follows_the_probabilities(model: Any) -> None:
    """The first token of many seeds is spread as the softmax says: within five standard deviations."""
    from penstock.runtime.serving.sampling import Choice

    logits = torch.tensor([[1.0, 2.0, 0.0, -1.0]])
    counts = torch.zeros(4)
    for seed in range(4000):
        choice = Choice(Request([1], 1, Sampling(temperature=0.5, seed=seed)))
        counts[int(choice(torch.ones(1, 1, dtype=torch.int64), logits).argmax())] += 1
    expected = (logits[0] / 0.5).softmax(-1) * 4000
    assert bool(((counts - expected).abs() <= 5 * expected.sqrt() + 1).all())


def test_bias_and_penalties_change_what_is_chosen(engine: Engine, model: Any) -> None:
    first = generated(model, 1)[0]
    assert ids(engine, Request(PROMPT, 1, Sampling(logit_bias=((first, -100.0),))))[0] != first
    assert ids(engine, Request(PROMPT, 3, Sampling(logit_bias=((9, 1000.0),)))) == [9, 9, 9]
    once = Sampling(logit_bias=((9, 1000.0), (10, 950.0)), presence_penalty=100.0)
    assert ids(engine, Request(PROMPT, 4, once)) == [9, 10, 9, 9], "both were there once: the larger again"
    often = Sampling(logit_bias=((9, 1000.0), (10, 950.0)), frequency_penalty=100.0)
    assert ids(engine, Request(PROMPT, 4, often)) == [9, 10, 9, 10]


def test_log_probabilities_are_those_of_the_logits(engine: Engine, model: Any) -> None:
    (token,) = engine.answer(Request(PROMPT, 1, top_logprobs=3))
    out = model.generate(torch.tensor([PROMPT]), max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    likely = out.logits[0][0].log_softmax(-1)
    values, best = likely.topk(3)
    assert token.id == int(best[0])
    assert token.logprob == float(values[0])
    assert token.top == tuple(zip(best.tolist(), values.tolist(), strict=True))
    (plain,) = engine.answer(Request(PROMPT, 1))
    assert (plain.logprob, plain.top) == (None, ())


@pytest.mark.parametrize("waits", [True, False])
def test_auto_is_exact_as_long_as_rounds_wait_for_reads(
    waits: bool, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = property(lambda self: time.monotonic() if waits else 0.0)
    monkeypatch.setattr(type(model.penstock.forwards), "stall_seconds", waited)
    with Engine(model, batch="auto") as engine:
        assert engine.exact
        assert ids(engine, Request(PROMPT, 60)) == generated(model, 60)
        assert engine.exact == waits
