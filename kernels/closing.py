"""Objects that end themselves at the end of a ``with``."""

from typing import Self


class Closing:
    """Is closed at the end of a ``with``."""

    __slots__ = ()

    def close(self) -> None:
        """Give back what it holds. Idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stopping:
    """Is stopped at the end of a ``with``."""

    __slots__ = ()

    def stop(self) -> None:
        """End what it does. Idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
