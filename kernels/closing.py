"""Base classes of objects that close or stop at the end of a ``with`` block."""

from typing import Self


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
