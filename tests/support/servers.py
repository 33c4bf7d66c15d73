"""A server over a model, on a thread of this process."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

import penstock
from penstock.runtime.server.answers.meters import Meters
from penstock.runtime.server.answers.served import ServedModel
from penstock.runtime.server.app import make_app
from penstock.runtime.server.running import config_for, listen
from penstock.runtime.serving.engine import Engine
from penstock.runtime.serving.requests import Pooling


@dataclass(frozen=True)
class Served:
    """A server, and what it serves."""

    url: str
    served: ServedModel

    @property
    def engine(self) -> Engine:
        return self.served.engine

    @property
    def tokenizer(self) -> Any:
        return self.served.tokenizer

    def idle(self) -> None:
        """Wait until no request is left."""
        until(lambda: not any(self.engine.counts().values()))


def until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something has happened on another thread."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


@contextmanager
def serving(
    folder: Path,
    store: Path,
    tokenizer: Any,
    *,
    rows: int = 8,
    queue: int = 64,
    loading: Mapping[str, Any] | None = None,
    pooling: Pooling = "mean",
    **options: Any,
) -> Iterator[Served]:
    """Serve the model in ``folder``, loaded with ``loading``, under the name "tiny"; ``options`` are as for
    ``make_app``."""
    with penstock.load(folder, store=store, **({"host_memory": "1GiB", "threads": 1} | dict(loading or {}))) as model:
        engine = Engine(model, rows=rows, queue=queue)
        meters = Meters()
        served = ServedModel(model, tokenizer, engine, "tiny", meters, pooling=pooling)
        waiting = listen("127.0.0.1", 0)
        app = make_app([served], meters, **options)
        server = uvicorn.Server(config_for(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [waiting]})
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{waiting.getsockname()[1]}", served)
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
            engine.close()
