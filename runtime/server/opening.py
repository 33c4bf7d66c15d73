"""Opens the models of a server: one stays in memory, several take turns with it."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ...tiering.progress import Quiet
from ..loading.load import load_opened
from ..loading.opening import ModelSource, open_files, read_tokenizer
from ..serving.engine import Engine, limits_of
from ..serving.loop import Batch
from ..serving.requests import Pooling
from ..serving.turns import EngineInTurn, ModelTurns, Opened
from .answers.meters import Meters
from .answers.pooling import find_pooling
from .answers.served import ServedModel

if TYPE_CHECKING:
    from ...tiering.progress import Progress
    from ..config.config import Config


@dataclass(frozen=True, slots=True)
class Serving:
    """How models are served. ``turn``: seconds that a request for another model waits before no more begin for the one
    that has the memory."""

    rows: int
    queue: int
    batch: Batch
    pooling: Literal["auto"] | Pooling
    turn: float


@contextmanager
def open_models(
    sources: Sequence[tuple[str, ModelSource]], config: "Config", serving: Serving, meters: Meters, bar: "Progress"
) -> Iterator[list[ServedModel]]:
    """Open models, each with its name in requests. All are loaded once now, so that what is wrong with one is said at
    once. Raises as ``load``."""
    if len(sources) == 1:
        [(name, source)] = sources
        model, tokenizer, pooling = _load(source, config, serving, bar)
        with closing(model.penstock), closing(_engine(model, serving)) as engine:
            yield [ServedModel(model, tokenizer, engine, name, meters, pooling=pooling)]
        return
    openers = [partial(_open, source, config, serving) for _, source in sources]
    with closing(ModelTurns(openers, queue=serving.queue + serving.rows, patience=serving.turn)) as turns:
        found: list[ServedModel] = []
        for number, (name, source) in enumerate(sources):
            model, tokenizer, pooling = _load(source, config, serving, bar)
            with closing(model.penstock):
                in_turn = EngineInTurn(turns, number, limits_of(model), serving.rows)
                found.append(ServedModel(model, tokenizer, in_turn, name, meters, pooling=pooling))
        del model
        yield found


def _load(source: ModelSource, config: "Config", serving: Serving, bar: "Progress") -> tuple[Any, Any, Pooling]:
    """A model, its tokenizer, and how it pools."""
    opened = open_files(source, config.store.path)
    tokenizer = read_tokenizer(opened, "serve reads prompts with one")
    pooling = find_pooling(opened.folder) if serving.pooling == "auto" else serving.pooling
    return load_opened(opened, config, bar), tokenizer, pooling


def _open(source: ModelSource, config: "Config", serving: Serving) -> Opened:
    """Give the memory to a model."""
    model: Any = load_opened(open_files(source, config.store.path), config, Quiet())
    try:
        return Opened(model, _engine(model, serving))
    except BaseException:
        model.penstock.close()
        raise


def _engine(model: Any, serving: Serving) -> Engine:
    return Engine(model, batch=serving.batch, rows=serving.rows, queue=serving.queue)
