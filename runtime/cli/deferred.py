"""Modules that are imported when they are first used, though others import them before that."""

import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

StandIn = Callable[["Deferred"], Any]
"""Makes what stands for a name of a module until the module is imported."""


def defer(name: str, stand_ins: Mapping[str, StandIn], apart: Sequence[str] = ()) -> None:
    """Import the module ``name`` when something of it is used that is not among ``stand_ins``, or a submodule of it.
    Those submodules that it has ``apart``, which need nothing of it, are imported now. Nothing is done where the module
    is imported already, or not there."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    sys.modules[name] = deferred = Deferred(spec, stand_ins)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, deferred)  # as importing it does
    deferred.__path__ = spec.submodule_search_locations or []
    for each in apart:
        with suppress(ModuleNotFoundError):
            importlib.import_module(f"{name}.{each}")
    if is_deferred(deferred):
        del deferred.__path__


class Deferred(ModuleType):
    """A module before it is imported. Then this object is the module, and no longer one of this class."""

    def __init__(self, spec: ModuleSpec, stand_ins: Mapping[str, StandIn]) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__package__ = spec, spec.loader, spec.parent
        self.__file__ = spec.origin
        self._stand_ins, self._waiting = stand_ins, list[Callable[[], Any]]()
        self._lock, self._importing = threading.RLock(), False

    def __getattr__(self, name: str) -> Any:
        """The stand-in for ``name``, or what the module has: it is imported. Raises AttributeError."""
        with self._lock:
            if is_deferred(self):
                places = self.__spec__.submodule_search_locations  # type: ignore[union-attr]
                wants_submodule = name == "__path__" and places is not None
                if self._importing or (name.startswith("__") and not wants_submodule):
                    raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
                if name in self._stand_ins:
                    return self._stand_ins[name](self)
                load(self)
        return getattr(self, name)


def is_deferred(module: ModuleType) -> bool:
    """Whether ``module`` is not imported yet."""
    return type(module) is Deferred


def load(module: Deferred) -> None:
    """Import ``module``, if it is not yet."""
    with module._lock:
        if not is_deferred(module) or module._importing:
            return
        spec = module.__spec__
        assert spec is not None
        assert spec.loader is not None
        module._importing = True
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        try:
            spec.loader.exec_module(module)
        finally:
            module._importing = False
        module.__class__ = ModuleType  # type: ignore[assignment]
        for call in module._waiting:
            call()


def when_loaded(module: Deferred, call: Callable[[], Any]) -> None:
    """Have ``call`` done once ``module`` is imported."""
    module._waiting.append(call)
