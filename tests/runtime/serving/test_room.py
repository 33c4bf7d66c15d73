"""Room for keys and values in pages: requests wait for it, are refused where it will never be there, and give it up for
others."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.runtime.serving.engine import Engine
from penstock.runtime.serving.requests import Request, Token
from penstock.tiering.errors import BudgetTooSmall, PromptTooLong
from tests.support.paged import paged, settle, tier_of

PROMPTS = [[5 + number] * 40 for number in range(5)]
NEWEST = 2 * 2 * 4096
"""Bytes of the newest pages of a request: keys and values of two layers."""
MEMORY = 3 * NEWEST * 4 // 3
"""For those of three requests, beside the ring."""
WAIT = 60


@pytest.fixture
def model(tiny_dense_folder: Path, store: Path) -> Iterator[Any]:
    with paged(tiny_dense_folder, store, MEMORY) as loaded:
        yield loaded


def generated(model: Any, prompt: list[int], count: int) -> list[int]:
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    settle(tier_of(model).pool)  # its pages are in nobody's way
    return [int(token) for token in out[0, len(prompt) :]]


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.answers: list[Token | BaseException] = []
        self.ended = threading.Event()

    def __call__(self, answer: Token | BaseException) -> None:
        self.answers.append(answer)
        if isinstance(answer, BaseException) or answer.finish is not None:
            self.ended.set()

    def ids(self) -> list[int]:
        assert self.ended.wait(WAIT)
        for answer in self.answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer.id for answer in self.answers if isinstance(answer, Token)]


def test_rows_wait_until_there_is_room_for_their_newest_pages(model: Any) -> None:
    wanted = [generated(model, prompt, 20) for prompt in PROMPTS]
    most, heard = [0], [Heard() for _ in PROMPTS]
    with Engine(model) as engine:

        class Watch:
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                most[0] = max(most[0], engine.counts()["running"])
                return scores

        for prompt, listener in zip(PROMPTS, heard, strict=True):
            engine.submit(Request(prompt, 20, processors=[Watch()]), listener)
        assert [listener.ids() for listener in heard] == wanted
    assert most == [3]
    settle(tier_of(model).pool)
    assert tier_of(model).pool.usage().host_bytes == 0


def test_what_will_never_fit_is_refused_at_once(tiny_dense_folder: Path, store: Path) -> None:
    heard, fits = Heard(), Heard()
    with paged(tiny_dense_folder, store, "256KiB", kv_flash_limit="2MiB") as model:
        with Engine(model) as engine:
            engine.submit(Request([5] * 100, 150), heard)  # before it is known what a token takes
            with pytest.raises(PromptTooLong, match=r"\[kv\] flash.* of 192 tokens"):
                heard.ids()
            most = engine.room(100)
            assert most == 192 - 100 + 1
            with pytest.raises(PromptTooLong, match="may have 193"):
                engine.submit(Request([5] * 100, most + 1), heard)
            engine.submit(Request([5] * 100, most), fits)
            answer = fits.ids()
        assert answer == generated(model, [5] * 100, most)


def test_not_a_single_token_fits(tiny_dense_folder: Path, store: Path) -> None:
    with (
        paged(tiny_dense_folder, store, "16KiB") as model,
        Engine(model) as engine,
        pytest.raises(BudgetTooSmall, match=r"\[kv\] host"),
    ):
        next(engine.answer(Request([5], 1)))


@pytest.mark.parametrize("format_", ["as-is", "int8"])
def test_a_batch_request_gives_its_memory_to_an_interactive_one_and_goes_on(
    format_: str, tiny_dense_folder: Path, store: Path
) -> None:
    pages = 1 if format_ == "as-is" else 1 + 128 // 16 + 1
    memory = NEWEST * pages * 4 // 3 + 4096
    with paged(tiny_dense_folder, store, memory, kv_format=format_) as model:
        prompt = PROMPTS[0] * 3
        wanted, other = generated(model, prompt, 60), generated(model, PROMPTS[1] * 4, 30)
        batch, interactive = Heard(), Heard()
        with Engine(model) as engine:

            def listen(answer: Token | BaseException) -> None:
                batch(answer)
                if len(batch.answers) == 23:
                    engine.submit(Request(PROMPTS[1] * 4, 30), interactive)
                if len(batch.answers) == 24:
                    assert interactive.ended.is_set(), "it goes on when the other one has ended"

            engine.submit(Request(prompt, 60, priority="batch"), listen)
            assert batch.ids() == wanted
            assert interactive.ids() == other
