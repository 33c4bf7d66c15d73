"""Ctrl-C at any line of Penstock: the model goes on with the right bits, and nothing is lost."""

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from tests.support.engines import engine_of
from tests.support.interrupting import interrupt, lines_of
from tests.support.logits import IDS, least_budget, logits

KINDS = {
    "experts": ("tiny_moe_folder", {}),
    "dense": ("tiny_dense_folder", {}),
    "pages": ("tiny_dense_folder", {"kv_host_memory": "256KiB"}),
}
STEP = 7
"""Every which line is tried in the short version."""


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, store: Path) -> Iterator[Any]:
    """transformers' logits, and our model under the least budget, of one checkpoint."""
    name, settings = KINDS[request.param]
    folder = request.getfixturevalue(name)
    options = {"attn_implementation": "eager"}
    reference = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager", **options).eval()
    budget = least_budget(folder, store)
    with penstock.load(
        folder, store=store, host_memory=budget + (256 << 10) * bool(settings), **settings, **options
    ) as model:
        yield logits(reference), model


def held(model: PreTrainedModel) -> dict[Any, int]:
    """Leases of this thread."""
    return dict(engine_of(model).bridge._planner.residency.held(threading.get_ident()))


def check(model: PreTrainedModel, expected: tuple[torch.Tensor, ...], number: int) -> None:
    assert held(model) == {}, f"line {number}: leases are lost"
    engine_of(model).check_integrity()
    found = logits(model)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), f"line {number}: other bits"
    if (kv := engine_of(model).kv) is not None:
        kv.pool.check_integrity()
        assert kv.pool.planner.books.held == 0, f"line {number}: pages are held for ever"


def try_lines(pair: tuple[Any, PreTrainedModel], step: int) -> None:
    expected, model = pair
    check(model, expected, 0)
    lines = lines_of(lambda: model(IDS))
    raised = 0
    for number in lines[random.Random(0).randrange(step) :: step]:
        raised += interrupt(lambda: model(IDS), number) is not None
        check(model, expected, number)
    assert raised > len(lines) // step // 2, "interrupts get lost"


def test_an_interrupt_at_lines_of_a_forward(pair: tuple[Any, PreTrainedModel]) -> None:
    try_lines(pair, STEP * 3)


@pytest.mark.soak
def test_an_interrupt_at_every_line_of_a_forward(pair: tuple[Any, PreTrainedModel]) -> None:
    try_lines(pair, 1)


def test_an_interrupt_at_lines_of_generate(tiny_moe_folder: Path, store: Path) -> None:
    """Caches are cropped and reordered between forwards."""
    options = {"max_new_tokens": 4, "pad_token_id": 0, "num_beams": 2}
    settings = {"kv_host_memory": "8MiB", "attn_implementation": "eager"}
    budget = least_budget(tiny_moe_folder, store) + (8 << 20)
    with penstock.load(tiny_moe_folder, store=store, host_memory=budget, **settings) as model:
        expected = model.generate(IDS, **options)
        lines = lines_of(lambda: model.generate(IDS, **options))
        for number in lines[:: STEP * 9]:
            interrupt(lambda: model.generate(IDS, **options), number)
            assert held(model) == {}
            engine_of(model).check_integrity()
            engine_of(model).kv.pool.check_integrity()
            assert torch.equal(model.generate(IDS, **options), expected), f"line {number}"


def close_at(folder: Path, store: Path, budget: int, number: int | None) -> list[int]:
    before = {*threading.enumerate()}
    model = penstock.load(folder, store=store, host_memory=budget)
    model(IDS)
    engine = engine_of(model)
    found = lines_of(model.penstock.close) if number is None else []
    if number is not None:
        interrupt(model.penstock.close, number)
    model.penstock.close()
    with pytest.raises(penstock.Closed):
        model(IDS)
    assert engine.host_tier.arena._map is None
    assert {*threading.enumerate()} <= before
    return found


@pytest.mark.parametrize("step", [40, pytest.param(1, marks=pytest.mark.soak)])
def test_an_interrupt_at_lines_of_close(tiny_dense_folder: Path, store: Path, step: int) -> None:
    budget = least_budget(tiny_dense_folder, store)
    for number in close_at(tiny_dense_folder, store, budget, None)[::step]:
        close_at(tiny_dense_folder, store, budget, number)


@pytest.mark.parametrize("step", [400, pytest.param(20, marks=pytest.mark.soak)])
def test_an_interrupt_at_lines_of_load(tiny_dense_folder: Path, store: Path, step: int) -> None:
    budget = least_budget(tiny_dense_folder, store)
    models: list[PreTrainedModel] = []

    def load() -> None:
        models.append(penstock.load(tiny_dense_folder, store=store, host_memory=budget))

    lines = lines_of(load)
    expected = logits(models[0])
    for number in lines[::step]:
        interrupt(load, number)
        load()
        assert all(torch.equal(a, b) for a, b in zip(expected, logits(models[-1]), strict=True)), f"line {number}"
        while models:
            models.pop().penstock.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM])
@pytest.mark.parametrize("rounds", [25, pytest.param(300, marks=pytest.mark.soak)])
def test_signals_from_outside(tiny_moe_folder: Path, store: Path, number: int, rounds: int) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.support.interrupted_child",
        tiny_moe_folder,
        store,
        number,
        rounds,
    ]
    command += [least_budget(tiny_moe_folder, store)]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= rounds // 2, "interrupts get lost"
