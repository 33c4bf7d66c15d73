"""Progress of long work: a bar on a terminal, nothing on a pipe."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...tiering.progress import Progress, Quiet


class Bar:
    """A bar on stderr. Any thread may advance it. One task at a time: a new ``start`` ends the one before."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        self._lock = threading.Lock()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: Any = None

    def start(self, label: str, total_bytes: int) -> None:
        """As Progress.start."""
        with self._lock:
            self._end()
            self._task = self._bars.add_task(label, total=total_bytes)
            self._bars.start()

    def advance(self, n: int) -> None:
        """As Progress.advance."""
        with self._lock:
            if self._task is not None:
                self._bars.advance(self._task, n)

    def finish(self) -> None:
        """As Progress.finish."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._task is not None:
            self._bars.stop()
            self._bars.remove_task(self._task)
            self._task = None


@contextmanager
def shown(progress: Progress | None = None) -> Iterator[Progress]:
    """``progress`` if given, else a bar where stderr is a terminal. It is finished at the end, whatever happens."""
    progress = progress or (Bar() if sys.stderr.isatty() else Quiet())
    try:
        yield progress
    finally:
        progress.finish()
