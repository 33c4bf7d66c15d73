"""Answers that are computed beside others have the bits of the same request alone."""

import itertools
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.runtime.serving.answer import compute_answer
from penstock.runtime.serving.engine import Engine
from penstock.runtime.serving.requests import Request, Sampling, Token
from tests.support.tiny_models import save_tiny

KINDS = {
    "llama": "dense",
    "gpt2": "transposed weights and biases",
    "gemma3_text": "windows",
    "qwen3_moe": "experts",
    "gpt_oss": "experts with biases, and windows",
    "deepseek_v3": "latent attention",
    "qwen3_next": "recurrent states",
    "opt": "positions of its own",
}


class Recorder:
    """A logits processor that changes nothing, and keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(scores.clone())
        return scores


def requests(count: int, vocabulary: int) -> list[tuple[Request, Recorder]]:
    """Requests of all lengths and ways to sample."""
    chance, found = random.Random(7), []
    for number in range(count):
        recorder = Recorder()
        sampling = Sampling(
            temperature=(0.0, 0.7, 1.3)[number % 3],
            top_p=(1.0, 0.9)[number % 2],
            top_k=(0, 40)[number // 2 % 2],
            seed=number,
            presence_penalty=0.3 * (number % 4 == 3),
        )
        prompt = [chance.randrange(3, vocabulary) for _ in range(chance.choice((1, 2, 7, 20, 40)))]
        found.append((Request(prompt, chance.choice((1, 4, 9)), sampling, processors=[recorder]), recorder))
    return found


def alone(model: Any, count: int) -> list[tuple[list[int], torch.Tensor]]:
    """The tokens and logits of each request, one after the other, by ``generate`` itself."""
    answers = []
    for request, recorder in requests(count, model.config.vocab_size):
        tokens: list[Token] = []
        compute_answer(model, request, tokens.append)
        answers.append(([token.id for token in tokens], torch.cat(recorder.seen)))
    return answers


def together(model: Any, count: int) -> list[tuple[list[int], torch.Tensor]]:
    """The same by an engine: some arrive at once, others when one has its first token, and some are cancelled."""
    asked = requests(count, model.config.vocab_size)
    tokens: list[list[int]] = [[] for _ in asked]
    errors: list[BaseException] = []
    left, done = [count], threading.Event()

    with Engine(model, rows=5) as engine:

        def submit(number: int) -> None:
            engine.submit(asked[number][0], lambda answer: listen(number, answer))

        def listen(number: int, answer: Token | BaseException) -> None:
            if isinstance(answer, BaseException):
                errors.append(answer)
                done.set()
                return
            if not tokens[number] and number + 3 < count:
                submit(number + 3)
                if number % 2:
                    engine.cancel(engine.submit(requests(1, model.config.vocab_size)[0][0], lambda _: None))
            tokens[number].append(answer.id)
            if answer.finish is not None:
                left[0] -= 1
                if not left[0]:
                    done.set()

        for number in range(3):
            submit(number)
        assert done.wait(120)
        assert errors == []
        assert engine.counts() == {"running": 0, "waiting": 0, "paused": 0}
    return [(found, torch.cat(recorder.seen)) for found, (_, recorder) in zip(tokens, asked, strict=True)]


def same(some: Sequence[tuple[list[int], torch.Tensor]], others: Sequence[tuple[list[int], torch.Tensor]]) -> bool:
    return all(
        ids == other_ids and torch.equal(logits, other)
        for (ids, logits), (other_ids, other) in zip(some, others, strict=True)
    )


def list_cases() -> list[Any]:
    """Each kind in one of four ways, in turn, and in the others in the long version."""
    ways = list(itertools.product(("as-is", "int8"), (False, True)))
    return [
        pytest.param(
            name,
            *way,
            id=f"{name}-{way[0]}{'-pages' * way[1]}",
            marks=() if place % len(ways) == number else pytest.mark.soak,
        )
        for place, name in enumerate(KINDS)
        for number, way in enumerate(ways)
    ]


@pytest.mark.parametrize(("name", "format_", "pages"), list_cases())
def test_every_logit_is_that_of_the_request_alone(name: str, format_: str, pages: bool, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / name, torch.bfloat16)
    options: dict[str, Any] = {"kv_host_memory": "4MiB"} if pages else {}
    least = penstock.plan(source, weights_format=format_, **options).minimum_host_memory
    with penstock.load(
        source, store=tmp_path / "store", host_memory=least + (100 << 10), weights_format=format_, **options
    ) as model:
        wanted = alone(model, 12)
        assert same(together(model, 12), wanted)
        assert same(alone(model, 12), wanted), "the model computes as before"
