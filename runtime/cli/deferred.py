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
    deferred.__path__ = spec.submodule_search_locations or []
    for each in apart:
        with suppress(ModuleNotFoundError):
            importlib.import_module(f"{name}.{each}")
    if deferred.is_deferred():
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
            places = self.__spec__.submodule_search_locations  # type: ignore[union-attr]
            wants_submodule = name == "__path__" and places is not None
            if self._importing or (name.startswith("__") and not wants_submodule):
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            if self.is_deferred():
                if name in self._stand_ins:
                    return self._stand_ins[name](self)
                self.load()
        return getattr(self, name)

    def is_deferred(self) -> bool:
        """Whether the module is not imported yet."""
        return type(self) is Deferred

    def load(self) -> None:
        """Import the module, if it is not yet."""
        with self._lock:
            if not self.is_deferred() or self._importing:
                return
            self._importing = True
            places = self.__spec__.submodule_search_locations  # type: ignore[union-attr]
            if places is not None:
                self.__path__ = places
            try:
                self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
            finally:
                self._importing = False
            for call in self._waiting:
                call()
            self.__class__ = ModuleType  # type: ignore[assignment]

    def when_loaded(self, call: Callable[[], Any]) -> None:
        """Have ``call`` done once the module is imported."""
        self._waiting.append(call)
