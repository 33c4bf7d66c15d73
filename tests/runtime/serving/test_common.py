"""Beginnings that requests have in common are computed once, and no answer has other bits for it."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.runtime.serving.answer import compute_answer
from penstock.runtime.serving.engine import Engine
from penstock.runtime.serving.requests import Request, Token
from tests.support.tiny_models import save_tiny

COMMON = [7 + at % 90 for at in range(600)]
PROMPTS = [[*COMMON, 100 + number, *range(30, 60)] for number in range(4)]
NEW = 3


class Recorder:
    """A logits processor that changes nothing, and keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(scores.clone())
        return scores


def together(model: Any) -> tuple[list[torch.Tensor], list[int]]:
    """The logits of all answers, asked for at once, and how many tokens of each prompt were not computed."""
    recorders, ended = [Recorder() for _ in PROMPTS], [threading.Event() for _ in PROMPTS]
    cached = [0] * len(PROMPTS)
    errors: list[BaseException] = []
    with Engine(model) as engine:

        def listen(number: int, answer: Token | BaseException) -> None:
            if isinstance(answer, BaseException):
                errors.append(answer)
            else:
                cached[number] = answer.cached
            if isinstance(answer, BaseException) or answer.finish is not None:
                ended[number].set()

        def submit_all(answer: Token | BaseException) -> None:
            """Once the first is there: they come between two tokens, so all of them wait when the next round begins."""
            if isinstance(answer, Token) and answer.finish is not None:
                for number, prompt in enumerate(PROMPTS):
                    request = Request(prompt, NEW, processors=[recorders[number]])
                    engine.submit(request, lambda answer, number=number: listen(number, answer))

        engine.submit(Request([5], 1), submit_all)
        for event in ended:
            assert event.wait(120)
    assert errors == []
    return [torch.cat(recorder.seen) for recorder in recorders], cached


@pytest.mark.parametrize("pages", [False, True], ids=["", "pages"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_next"])
def test_what_is_common_is_computed_once(name: str, pages: bool, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / name, torch.bfloat16, max_position_embeddings=1024)
    options: dict[str, Any] = {"kv_host_memory": "4MiB"} if pages else {}
    wanted = []
    for number, prompt in enumerate(PROMPTS):
        recorder = Recorder()
        with penstock.load(source, store=tmp_path / f"alone{number}", kv_prefix="64MiB", **options) as model:
            compute_answer(model, Request(prompt, NEW, processors=[recorder]), lambda _: None)
        wanted.append(torch.cat(recorder.seen))
    with penstock.load(source, store=tmp_path / "store", kv_prefix="64MiB", **options) as model:
        block = model.penstock.prefixes.block
        shared = len(COMMON) // block * block
        found, cached = together(model)
        computed = model.penstock.forwards.tokens
    assert all(map(torch.equal, found, wanted))
    assert cached == [0, shared, shared, shared]
    once = len(PROMPTS[0]) + (len(PROMPTS) - 1) * (len(PROMPTS[0]) - shared)
    assert computed <= once + len(PROMPTS) * NEW + 2 + (2 * block + 1026 if name == "llama" else 0), "with trials"
