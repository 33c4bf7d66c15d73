"""Runs Hugging Face models larger than the machine's memory: exact, within a budget, streamed from flash.

import penstock
model = penstock.load("dir-or-hub-id", host_memory="2GiB")   # a transformers model, used as always
tokenizer = penstock.tokenizer(model)
print(model.penstock.stats())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _deprecated
from ._version import __version__
from .kernels import isa as _isa
from .tiering.errors import (
    BudgetTooSmall,
    BundleCorrupt,
    BundleError,
    BundleVersionError,
    CheckpointError,
    Closed,
    ConfigError,
    DeviceFull,
    DeviceModelError,
    DeviceUnavailable,
    EvaluationError,
    FlashFull,
    Forked,
    PenstockError,
    PrefixDamaged,
    PrefixError,
    PrefixVersionError,
    PromptTooLong,
    QueueFull,
    ReadError,
    RecordingError,
    RequestError,
    TextError,
    TimedOut,
    TraceError,
    UnplaceableModule,
)

if TYPE_CHECKING:
    from . import routing, serving, sim
    from .runtime.config.config import Config
    from .runtime.engine.stats import Stats
    from .runtime.loading.handle import Handle, handle
    from .runtime.loading.load import load, wrap
    from .runtime.loading.tokenizer import tokenizer
    from .runtime.planning.plan import plan
    from .runtime.planning.report import Plan
    from .runtime.tracing.trace import Trace

_deprecated.install()
_isa.hold_torch()

__all__ = [
    "BudgetTooSmall",
    "BundleCorrupt",
    "BundleError",
    "BundleVersionError",
    "CheckpointError",
    "Closed",
    "Config",
    "ConfigError",
    "DeviceFull",
    "DeviceModelError",
    "DeviceUnavailable",
    "EvaluationError",
    "FlashFull",
    "Forked",
    "Handle",
    "PenstockError",
    "Plan",
    "PrefixDamaged",
    "PrefixError",
    "PrefixVersionError",
    "PromptTooLong",
    "QueueFull",
    "ReadError",
    "RecordingError",
    "RequestError",
    "Stats",
    "TextError",
    "TimedOut",
    "Trace",
    "TraceError",
    "UnplaceableModule",
    "__version__",
    "handle",
    "load",
    "plan",
    "routing",
    "serving",
    "sim",
    "tokenizer",
    "wrap",
]


_LAZY = {
    "Config": "runtime.config.config",
    "Handle": "runtime.loading.handle",
    "Plan": "runtime.planning.report",
    "Stats": "runtime.engine.stats",
    "Trace": "runtime.tracing.trace",
    "handle": "runtime.loading.handle",
    "load": "runtime.loading.load",
    "plan": "runtime.planning.plan",
    "tokenizer": "runtime.loading.tokenizer",
    "wrap": "runtime.loading.load",
}
"""The modules of names that need torch, transformers or pydantic: they are imported when they are first used, so that
the command line answers at once."""
_MODULES = ("routing", "serving", "sim")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _LAZY:
        import_module(".runtime.config.instructions", __name__).check()
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
