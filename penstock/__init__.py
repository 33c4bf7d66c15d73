"""Runs Hugging Face models larger than the machine's memory: exact, within a budget, streamed from flash.

import penstock
model = penstock.load("dir-or-hub-id", host_memory="2GiB")   # a transformers model, used as always
model.penstock.stats()
"""

from typing import TYPE_CHECKING, Any

from . import _deprecated
from ._version import __version__
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
    PenstockError,
    PrefixDamaged,
    PrefixError,
    PrefixVersionError,
    PromptTooLong,
    ReadError,
    RecordingError,
    TextError,
    TraceError,
    UnplaceableModule,
)

if TYPE_CHECKING:
    from .runtime.config.config import Config
    from .runtime.loading.load import load, wrap

_deprecated.install()

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
    "PenstockError",
    "PrefixDamaged",
    "PrefixError",
    "PrefixVersionError",
    "PromptTooLong",
    "ReadError",
    "RecordingError",
    "TextError",
    "TraceError",
    "UnplaceableModule",
    "__version__",
    "load",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """What needs torch and transformers is imported when it is first used: the command line answers at once."""
    if name in ("load", "wrap"):
        from .runtime.loading import load as compose

        return getattr(compose, name)
    if name == "Config":
        from .runtime.config.config import Config

        return Config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
