"""A trace of one model while it is recorded: hooks on its layers, notes from the bridge, a file at the end."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ...kernels.closing import Stopping
from ...kernels.process.forks import leave_at_fork
from ...kernels.process.interrupts import SHIELD
from ...tiering.planner.counters import Counters
from ..checkpoints.modules import is_experts, layer_of
from .chrome import document
from .recorder import Recorder
from .tracefile import destination, write


class TakesNotes(Protocol):
    """Reports what it does to a recorder, while it has one."""

    recorder: Recorder | None


class TracedBridge(TakesNotes, Protocol):
    """The bridge whose requests are recorded."""

    def counters(self) -> Counters:
        """A copy of the planner's totals."""


class Trace(Stopping):
    """Records from the moment it is made until ``stop``, or the end of a ``with``."""

    def __init__(
        self,
        model: nn.Module,
        bridge: TracedBridge,
        files: Sequence[str],
        path: str | Path,
        *,
        others: Sequence[TakesNotes] = (),
    ) -> None:
        """``files`` are the names of the bundle's data files by number. ``others`` take notes beside ``bridge``. Raises
        TraceError when ``path`` cannot be written."""
        self.path = destination(path)
        """The file that the trace goes to."""
        self._noting, self._files, self._recorder = [bridge, *others], files, Recorder()
        self._bridge = bridge
        self._lock = threading.RLock()  # the garbage collector may stop it while this thread does
        self._running = True
        self._recorder.sample(bridge.counters())
        self._hooks: list[Any] = []  # they keep no module alive
        for name, module in _watched(model).items():
            self._watch(name, module)
        for each in self._noting:
            each.recorder = self._recorder

        leave_at_fork(self)

    def leave_to_parent(self) -> None:
        """As Inherited.leave_to_parent. The parent writes the file."""
        self._lock, self._running = threading.RLock(), False

    @property
    def running(self) -> bool:
        """Whether it is still recorded."""
        return self._running

    def stop(self) -> None:
        """End the recording and write the file. Idempotent. Raises TraceError when the file cannot be written."""
        with SHIELD:
            with self._lock:
                if not self._running:
                    return
                self._running = False
                for each in self._noting:
                    each.recorder = None
                for hook in self._hooks:
                    hook.remove()
            recorder, until = self._recorder, time.monotonic()
            notes = recorder.take()
            pieces = document(notes, since=recorder.since, until=until, files=self._files, full=recorder.full)
            write(self.path, map(str.encode, pieces))

    def _watch(self, name: str, module: nn.Module) -> None:
        recorder, bridge, layer = self._recorder, self._bridge, not is_experts(module)

        def enter(*_: Any) -> None:
            recorder.enter(name)

        def leave(*_: Any) -> None:
            recorder.leave(name)
            if layer:
                recorder.sample(bridge.counters())

        self._hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _watched(model: nn.Module) -> dict[str, nn.Module]:
    """The modules to watch, by path: layers, the experts in them, and modules with weights outside of layers."""
    modules = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    for path, module in modules.items():
        name = path if is_experts(module) else layer_of(path, modules) or path
        if name and any(parameter is not None for parameter in module._parameters.values()):
            found[name] = modules[name]
    return found
