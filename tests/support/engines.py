"""The engine of a loaded model, for tests of what lies under the public surface."""

from typing import Any

from penstock.runtime.engine.engine import Engine


def engine_of(model: Any) -> Engine:
    """The engine that ``model``, a loaded one, runs on."""
    engine: Engine = model.penstock._engine
    return engine
