"""Records a run for replay: every event that the planners handle, with its actions, from loading on.

tiering/sim/recording.py replays it and finds the first difference.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from ...kernels.closing import Stopping
from ...kernels.process.forks import leave_at_fork
from ...kernels.process.interrupts import SHIELD
from ...tiering.driving.small_files import read_small
from ...tiering.errors import RecordingError
from ...tiering.events import Action, Event
from ...tiering.kv.events import KVAction, KVEvent
from ...tiering.kv.setup import KVSetup
from ...tiering.planner.setup import Setup
from ...tiering.sim.recording import Recording, Writer, read
from .tracefile import destination, write

LIMIT = 400_000
"""Events kept, some 50 MB; a token of a model with 24 layers of experts leaves some 200."""
_LARGEST = 256 << 20
"""Most bytes of a recording: five times what is kept."""


class RunRecording(Stopping):
    """Records from the moment it is made, before anything is loaded, until ``stop``.

    It begins there because a planner's state is the result of all events until now: replay needs nothing else, and no
    code has to know what each policy remembers.
    """

    def __init__(self, setup: Setup, path: str | Path, *, limit: int = LIMIT) -> None:
        """Events beyond ``limit`` are left out. Raises TraceError when ``path`` cannot be written."""
        self.path = destination(path)
        """The file that the recording goes to."""
        self._writer, self._limit = Writer(setup), limit
        self._lines = [self._writer.head]
        self._whole, self._running = True, True
        self._lock = threading.Lock()
        leave_at_fork(self)

    def leave_to_parent(self) -> None:
        """As Inherited.leave_to_parent. The parent writes the file."""
        self._lock, self._running = threading.Lock(), False

    def step(self, now: float, event: Event, actions: list[Action]) -> None:
        """``event`` was handled at ``now``, and gave ``actions``. Called in the order in which events are handled."""
        self._keep(lambda: self._writer.step(now, event, actions))

    def begin_kv(self, setup: KVSetup) -> None:
        """KV is in pages: its planner begins with ``setup``, and nothing has happened to it yet."""
        self._keep(lambda: self._writer.begin_kv(setup))

    def kv_step(self, now: float, event: KVEvent, actions: list[KVAction]) -> None:
        """As ``step``, of the planner of KV."""
        self._keep(lambda: self._writer.kv_step(now, event, actions))

    def _keep(self, line: Callable[[], str]) -> None:
        with self._lock:
            if not self._running:
                return
            self._whole = self._whole and len(self._lines) <= self._limit  # one of them is the head
            if self._whole:
                self._lines.append(line())

    def stop(self) -> None:
        """End the recording and write the file. Idempotent. Raises TraceError when the file cannot be written."""
        with SHIELD:
            with self._lock:
                if not self._running:
                    return
                self._running = False
            write(self.path, map(str.encode, [*self._lines, self._writer.end(whole=self._whole)]))
            self._lines.clear()


def recorded(path: str | Path) -> Recording:
    """The recording in the file ``path``. Raises RecordingError, which names it, if there is none that can be used."""
    try:
        return read(read_small(Path(path).expanduser(), _LARGEST).decode("utf-8").splitlines())
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror or error}; name a recording") from error
    except ValueError as error:  # no UTF-8, or a name that no file can have
        raise RecordingError(f"{path!r} cannot be read: {error}; name a recording") from error
    except RecordingError as error:
        raise RecordingError(f"{path}: {error}") from error
