"""The interface by which long work reports its progress (pure)."""

from typing import Protocol


class Progress(Protocol):
    """Progress of one task at a time: ``start`` ends the previous task. Called from the working thread."""

    def start(self, label: str, total_bytes: int) -> None:
        """A task of ``total_bytes`` begins, shown as ``label``."""

    def advance(self, n: int) -> None:
        """``n`` more bytes are done."""
        ...

    def finish(self) -> None:
        """The task is done."""


class Quiet:
    """Progress that shows nothing."""

    def start(self, label: str, total_bytes: int) -> None:
        pass

    def advance(self, n: int) -> None:
        pass

    def finish(self) -> None:
        pass
