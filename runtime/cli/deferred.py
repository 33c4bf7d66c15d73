"""Modules that are imported when they are first used, though others import them before that."""

import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

StandIn = Callable[["Deferred"], Any]
"""Makes what stands for a name of a module until the module is imported."""


def defer(name: str, stand_ins: Mapping[str, StandIn]) -> None:
    """Import the module ``name`` when something of it is used that is not among ``stand_ins``. Nothing is done where it
    is imported already, or not there. Its submodules can be imported without it."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.loader is not None:
        sys.modules[name] = Deferred(spec, stand_ins)


class Deferred(ModuleType):
    """A module before it is imported. Then this object is the module, and no longer one of this class."""

    def __init__(self, spec: ModuleSpec, stand_ins: Mapping[str, StandIn]) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__package__ = spec, spec.loader, spec.parent
        self.__file__ = spec.origin
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        self._stand_ins, self._waiting = stand_ins, list[Callable[[], Any]]()
        self._lock, self._importing = threading.RLock(), False

    def __getattr__(self, name: str) -> Any:
        """The stand-in for ``name``, or what the module has: it is imported. Raises AttributeError."""
        with self._lock:
            if name.startswith("__") or self._importing:
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
