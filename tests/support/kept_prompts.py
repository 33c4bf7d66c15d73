"""Processes that generate with kept prompts, each begun anew by a server that has imported what they need."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

LENGTHS = (70, 100, 129, 150, 192, 193, 200, 225, 240, 250)
"""Of prompts; a block of the tiny models has 64 tokens."""
PROMPT = torch.randint(3, 320, (1, 250), generator=torch.Generator().manual_seed(0))

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["penstock.runtime.loading.load", "transformers.models.llama.modeling_llama", __name__]
)


def generate(folder: Path, store: Path, *, lengths: tuple[int, ...] = LENGTHS, **options: Any) -> dict[str, Any]:
    """In a process of its own: the greedy continuation of each beginning of PROMPT, and the stats."""
    return start(folder, store, lengths, **options)()


def start(folder: Path, store: Path, lengths: tuple[int, ...], **options: Any) -> Callable[[], dict[str, Any]]:
    """As ``generate``; waits when what it gives is called."""
    ours, theirs = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_work, args=(theirs, folder, store, lengths, options))
    process.start()
    theirs.close()

    def result() -> dict[str, Any]:
        found: dict[str, Any] = ours.recv()
        process.join()
        return found

    return result


def start_and_kill(folder: Path, store: Path, after: float, **options: Any) -> bool:
    """Generate again and again, and be killed ``after`` so many seconds of that; whether it was."""
    ours, theirs = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_work_on, args=(theirs, folder, store, options))
    process.start()
    theirs.close()
    ours.recv()  # it is loaded
    time.sleep(after)  # the moment is what is random
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def _loaded(folder: Path, store: Path, options: dict[str, Any]) -> Any:
    import penstock
    from penstock.runtime.prefixes import prefix

    torch.set_num_threads(1)
    prefix.worth_reading = lambda *_, **__: True  # so small a model computes faster than any drive reads
    return penstock.load(folder, store=store, **({"host_memory": "64MiB"} | options))


def _work(pipe: Connection, folder: Path, store: Path, lengths: tuple[int, ...], options: dict[str, Any]) -> None:
    with _loaded(folder, store, options) as model:
        texts = []
        for length in lengths:
            texts.append(model.generate(PROMPT[:, :length], max_new_tokens=6, do_sample=False)[0, length:].tolist())
            if model.penstock.prefixes is not None:
                model.penstock.prefixes.flush()
        stats = model.penstock.stats()
    names = ("hits", "tokens_restored", "bytes_read", "bytes_written", "problem")
    pipe.send({"texts": texts, **{name: getattr(stats, f"prefix_{name}") for name in names}})


def _work_on(pipe: Connection, folder: Path, store: Path, options: dict[str, Any]) -> None:
    with _loaded(folder, store, options) as model:
        pipe.send(None)
        while True:
            for length in LENGTHS:
                model.generate(PROMPT[:, :length], max_new_tokens=1, do_sample=False)
                model.penstock.prefixes.flush()
            model.penstock.prefixes.store.prune(everything=True)
