"""How long work tells how far it is."""

from typing import Protocol


class Progress(Protocol):
    """One task at a time: a ``start`` ends the task before. Called from the thread that works."""

    def start(self, label: str, total_bytes: int) -> None: ...

    def advance(self, n: int) -> None:
        """``n`` more bytes are done."""
        ...

    def finish(self) -> None: ...


class Quiet:
    """Progress that nobody looks at."""

    def start(self, label: str, total_bytes: int) -> None:
        pass

    def advance(self, n: int) -> None:
        pass

    def finish(self) -> None:
        pass
