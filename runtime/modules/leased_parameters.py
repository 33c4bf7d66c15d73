"""Parameters of a streamed module: placeholders, except in the threads that hold a lease."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


class LeasedParameters(dict[str, Any]):
    """Takes the place of a module's ``_parameters``.

    Bound anew by every thread that enters, so that nothing left behind by an interrupted one is ever computed on.
    """

    def __init__(self, parameters: dict[str, Any], names: Sequence[str], outside: Callable[[str], Any]) -> None:
        """``names`` of ``parameters`` are leased; ``outside`` gives what a thread without a lease sees for one."""
        super().__init__(parameters)
        self.placeholders = {name: parameters[name] for name in names}
        self._outside = outside
        self._threads: set[int] = set()
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Any:
        if name in self.placeholders and threading.get_ident() not in self._threads:
            return self._outside(name)
        return super().__getitem__(name)

    def bind(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Show ``parameters`` to the calling thread."""
        with self._lock:
            self._threads.add(threading.get_ident())
            self.update(parameters)

    def unbind(self) -> None:
        """Show the calling thread placeholders again."""
        with self._lock:
            self._threads.discard(threading.get_ident())
            if not self._threads:
                self.update(self.placeholders)
