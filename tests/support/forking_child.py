"""Forks a process that has a loaded model. Arguments: scenarios, checkpoint, store, budget, backend, folder."""

import gc
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import penstock
from tests.support.engines import engine_of
from tests.support.logits import IDS

SOON = 60


def load(folder: str, store: str, budget: int, backend: str, **more: Any) -> Any:
    return penstock.load(folder, store=store, host_memory=budget, io_backend=backend, io_depth=2, **more)


def forked(work: Callable[[], object]) -> int:
    """The process id of a child that does ``work`` and ends as any program does."""
    if child := os.fork():
        return child
    try:
        work()
    except BaseException as error:
        print(f"in the child: {error!r}", file=sys.stderr)
        os._exit(1)
    sys.exit(0)  # with all that happens at the end of the interpreter


def ended(child: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"a child ended with {code}"


def refuses(call: Callable[[], object]) -> None:
    with pytest.raises(penstock.PenstockError, match="forked"):
        call()


def use(model: Any) -> None:
    """All that a child may try."""
    refuses(lambda: model(IDS))
    refuses(lambda: model.generate(IDS, max_new_tokens=2, pad_token_id=0))
    refuses(model.penstock.stats)
    refuses(model.penstock.cache)
    model.penstock.close()
    refuses(lambda: model(IDS))


def refused(arguments: tuple[Any, ...], folder: Path) -> None:
    with load(*arguments, record=folder / "record") as model:
        expected = model(IDS).logits
        with model.penstock.trace(folder / "trace.json") as trace:
            ended(forked(lambda: use(model)))
            ended(forked(gc.collect))
            assert not (folder / "trace.json").exists()
            refused_stop = forked(trace.stop)
            ended(refused_stop)
            assert not (folder / "trace.json").exists()
            assert torch.equal(model(IDS).logits, expected)
        json.loads((folder / "trace.json").read_text())
        assert not (folder / "record").exists()
        engine_of(model).check_integrity()
    assert (folder / "record").exists()


def paged(arguments: tuple[Any, ...], folder: Path) -> None:
    folder_, store, budget, backend = arguments
    with load(folder_, store, budget + (192 << 10), backend, kv_host_memory="192KiB") as model:
        cache = model.penstock.cache()
        ids = IDS.repeat(1, 6)
        expected = model(ids, past_key_values=cache).logits
        token = model(IDS[:, :1], past_key_values=cache).logits

        def work() -> None:
            nonlocal cache
            use(model)
            refuses(lambda: model(IDS[:, :1], past_key_values=cache))
            cache = None
            gc.collect()

        ended(forked(work))
        again = model.penstock.cache()
        assert torch.equal(model(ids, past_key_values=again).logits, expected)
        assert torch.equal(model(IDS[:, :1], past_key_values=again).logits, token)


def busy(arguments: tuple[Any, ...], folder: Path) -> None:
    """Forks while other threads compute and read."""
    with load(*arguments) as model:
        expected = model(IDS).logits
        stop, wrong = threading.Event(), []

        def compute() -> None:
            while not stop.is_set():
                if not torch.equal(model(IDS).logits, expected):
                    wrong.append(True)

        threads = [threading.Thread(target=compute) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            ended(forked(lambda: use(model)))
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        engine_of(model).check_integrity()


def loads(arguments: tuple[Any, ...], folder: Path) -> None:
    """A child loads a model of its own."""
    with load(*arguments) as model:
        expected = model(IDS).logits

        def work() -> None:
            for _ in range(2):
                with load(*arguments) as own:
                    assert torch.equal(own(IDS).logits, expected)

        ended(forked(work))
        assert torch.equal(model(IDS).logits, expected)


class Rows(torch.utils.data.Dataset[int]):
    """A data set; its workers inherit the model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __len__(self) -> int:
        return 8

    def __getitem__(self, at: int) -> int:
        return at


def alone(arguments: tuple[Any, ...]) -> None:
    with load(*arguments) as own:
        own(IDS)


def workers(arguments: tuple[Any, ...], folder: Path) -> None:
    with load(*arguments) as model:
        expected = model(IDS).logits
        found = [
            int(row)
            for batch in DataLoader(Rows(model), num_workers=2, multiprocessing_context="fork")
            for row in batch
        ]
        assert found == [*range(8)]
        for way in ("fork", "forkserver", "spawn"):
            context = multiprocessing.get_context(way)
            target, given = (use, (model,)) if way == "fork" else (alone, (arguments,))
            process = context.Process(target=target, args=given)
            process.start()
            process.join(SOON)
            assert process.exitcode == 0, way
        assert torch.equal(model(IDS).logits, expected)


if __name__ == "__main__":
    torch.set_num_threads(1)
    names, checkpoint, store, budget, backend, folder = sys.argv[1:]
    for name in names.split(","):
        globals()[name]((checkpoint, store, int(budget), backend), Path(folder))
        print(name, flush=True)
