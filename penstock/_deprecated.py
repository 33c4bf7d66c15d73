"""Old import paths that the documentation named: they work for one release, with a DeprecationWarning."""

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: Mapping[str, tuple[str, str]] = {
    "penstock.runtime.recording": ("penstock.runtime.tracing.run_recording", "penstock.sim"),
    "penstock.runtime.reference": ("penstock.runtime.planning.reference", "penstock.plan"),
    "penstock.tiering.sim.rerun": ("penstock.tiering.sim.recorded_workload", "penstock.sim"),
    "penstock.runtime.routes": ("penstock.runtime.routing.routes", "penstock.routing"),
}
"""Old module -> where its names are now, and what to use instead."""


class _Finder(MetaPathFinder):
    """Finds modules under their old names, when there is none of that name any more."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Loader()) if fullname in MOVED else None


class _Loader(Loader):
    """Makes a module that looks every name up where it is now."""

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = _forwarder(module.__name__)  # type: ignore[method-assign]


def _forwarder(old: str) -> Callable[[str], Any]:
    new, instead = MOVED[old]

    def forward(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(new), name)
        warnings.warn(
            f"{old} has moved, and this name of it goes with the next release; use {instead}",
            DeprecationWarning,
            stacklevel=2,
        )
        return value

    return forward


def install() -> None:
    """Have the old names found from now on. Idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
