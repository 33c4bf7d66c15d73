"""Does a step, and says what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penstock.tiering.errors import PenstockError
from tests.support.limited import TookTooLong


@dataclass(frozen=True)
class Raised:
    """A step ended with an error."""

    error: BaseException

    @property
    def is_refusal(self) -> bool:
        """Whether Penstock says that it does not do this. It may say so through a library that called it."""
        error: BaseException | None = self.error
        while error is not None:
            if isinstance(error, PenstockError):
                return True
            error = error.__cause__
        return False

    def __str__(self) -> str:
        text = str(self.error).strip().replace("\n", " | ")
        return f"{type(self.error).__name__}: {text[:300]}"


def attempt(act: Callable[[], Any]) -> Any:
    """What ``act`` returns, or Raised."""
    try:
        return act()
    except TookTooLong:
        raise
    except BaseException as error:
        return Raised(error)
