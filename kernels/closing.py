"""Base classes of objects that close or stop at the end of a ``with`` block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, Self


class CanClose(Protocol):
    """An object that holds something until it is closed."""

    def close(self) -> None:
        """Release everything that the object holds. Idempotent."""
        ...


class Closing:
    """An object that is closed at the end of a ``with`` block."""

    __slots__ = ()

    def close(self) -> None:
        """Release everything that the object holds. Idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def closed_on_error(opened: CanClose | None) -> Iterator[None]:
    """Close what is ``opened`` if the block raises."""
    try:
        yield
    except BaseException:
        if opened is not None:
            opened.close()
        raise


class Stopping:
    """An object that is stopped at the end of a ``with`` block."""

    __slots__ = ()

    def stop(self) -> None:
        """End the object's work. Idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
