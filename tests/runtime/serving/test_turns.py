"""Several models on one budget: each has its turn, and its answers are those that it gives alone."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.runtime.serving.engine import Engine, limits_of
from penstock.runtime.serving.requests import Passage, Request, Token
from penstock.runtime.serving.turns import EngineInTurn, ModelTurns, Opened
from penstock.tiering.errors import CheckpointError, Closed, QueueFull, RequestError, TimedOut
from tests.support.servers import until

WAIT = 60
PROMPT = [5, 6, 7, 8]


class House:
    """Two models that take turns; ``broken`` ones cannot be loaded."""

    def __init__(self, folders: list[Path], store: Path, patience: float = 0.0, queue: int = 4) -> None:
        self._folders, self._store = folders, store
        self.loaded: list[int] = []
        self.broken: set[int] = set()
        self.turns = ModelTurns([lambda n=n: self._open(n) for n in range(2)], queue=queue, patience=patience)
        self.engines, self.alone = [], []
        for number, folder in enumerate(folders):
            with penstock.load(folder, store=store, host_memory="1GiB", threads=1) as model:
                self.engines.append(EngineInTurn(self.turns, number, limits_of(model), 4))
                ids = torch.tensor([PROMPT])
                out = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=None
                )
                self.alone.append(out[0, len(PROMPT) :].tolist())

    def _open(self, number: int) -> Opened:
        if number in self.broken:
            raise CheckpointError("it is broken")
        model: Any = penstock.load(self._folders[number], store=self._store, host_memory="1GiB", threads=1)
        model.generation_config.eos_token_id = None
        self.loaded.append(number)
        return Opened(model, Engine(model, rows=4, queue=8))


@pytest.fixture
def house(tiny_dense_folder: Path, tiny_moe_folder: Path, store: Path) -> Iterator[House]:
    house = House([tiny_dense_folder, tiny_moe_folder], store)
    yield house
    house.turns.close()


def answer(engine: Engine, **more: Any) -> list[int]:
    return [token.id for token in engine.answer(Request(prompt=PROMPT, max_tokens=6, **more))]


def test_each_answers_as_alone_in_its_turn(house: House):
    assert [engine.model for engine in house.engines] == [None, None]
    for number in (0, 1, 0):
        assert answer(house.engines[number]) == house.alone[number]
        assert house.engines[number].model is not None
        assert house.engines[1 - number].model is None
    assert house.loaded == [0, 1, 0]
    assert [engine.tokens for engine in house.engines] == [12, 6]
    assert house.engines[0].counts() == {"running": 0, "waiting": 0, "paused": 0}


def test_what_runs_is_waited_for_and_nobody_passes_who_waits(house: House):
    held, reached = threading.Event(), threading.Event()

    def hold(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        reached.set()
        assert held.wait(WAIT)
        return scores

    order: list[tuple[str, int]] = []

    def listen(name: str):
        return lambda token: order.append((name, token.id)) if isinstance(token, Token) else order.append((name, -1))

    house.engines[0].submit(Request(prompt=PROMPT, max_tokens=6, processors=[hold]), listen("first"))
    assert reached.wait(WAIT)
    house.engines[1].submit(Request(prompt=PROMPT, max_tokens=6), listen("other"))
    house.engines[0].submit(Request(prompt=PROMPT, max_tokens=6), listen("late"))
    assert house.engines[0].counts()["waiting"] == house.engines[1].counts()["waiting"] == 1
    held.set()
    until(lambda: len(order) == 18)
    assert [name for name, _ in order] == ["first"] * 6 + ["other"] * 6 + ["late"] * 6
    assert [token for _, token in order] == house.alone[0] + house.alone[1] + house.alone[0]
    assert house.loaded == [0, 1, 0]


def test_one_that_cannot_be_loaded_leaves_the_other(house: House):
    house.broken.add(1)
    with pytest.raises(CheckpointError, match="it is broken"):
        answer(house.engines[1])
    assert answer(house.engines[0]) == house.alone[0]
    house.broken.clear()
    assert answer(house.engines[1]) == house.alone[1]


def test_requests_are_checked_counted_cancelled_and_late(house: House):
    with pytest.raises(RequestError, match="empty"):
        house.engines[0].submit(Request(prompt=[], max_tokens=1), print)
    reached, held = threading.Event(), threading.Event()

    def hold(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        reached.set()
        assert held.wait(WAIT)
        return scores

    running = house.engines[0].submit(Request(prompt=PROMPT, max_tokens=6, processors=[hold]), lambda token: None)
    assert reached.wait(WAIT)
    heard: list[Any] = []
    numbers = [house.engines[1].submit(Request(prompt=PROMPT, max_tokens=6), heard.append) for _ in range(3)]
    with pytest.raises(TimedOut):
        answer(house.engines[1], timeout=0.05)
    house.engines[1].submit_passage(Passage(PROMPT), heard.append)
    with pytest.raises(QueueFull):
        house.engines[1].submit(Request(prompt=PROMPT, max_tokens=6), heard.append)
    for number in numbers:
        house.engines[1].cancel(number)
    house.engines[0].cancel(running)
    held.set()
    until(lambda: bool(heard))
    [embedding] = heard
    assert embedding.shape == (house.engines[1].model.config.hidden_size,)


def test_the_end_is_told_to_all_who_wait(house: House):
    held: list[Any] = []
    house.broken.add(1)
    answer(house.engines[0])
    house.turns.close()
    with pytest.raises(Closed):
        house.engines[0].submit(Request(prompt=PROMPT, max_tokens=1), held.append)
    assert isinstance(house.engines[1].ended, Closed)
