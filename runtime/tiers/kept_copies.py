"""Counts the weights that are kept in memory beside the arenas, because somebody changed them, against the budget.

stored_weight.py gives a changed weight its memory.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...tiering.errors import BudgetTooSmall, PenstockError
from ...tiering.units import format_size
from .half_added import half_added_adapter


class KeptCopies:
    """Bytes of a model's weights beside the arenas of the tier that is computed on."""

    def __init__(self, budget: str, reserve: Callable[[int], bool]) -> None:
        """``reserve(size)`` has the arenas leave ``size`` bytes of ``budget``, a setting's name, in all; or tells that
        they cannot."""
        self._budget, self._reserve = budget, reserve
        self._lock = threading.Lock()
        self.size = 0
        """Bytes that are kept."""
        self.refused: PenstockError | None = None
        """The last refusal."""
        self._half_changed = ""
        self._passing = 0

    def keep(self, name: str, size: int) -> None:
        """``size`` bytes more (fewer if negative) are kept, of the weight ``name``. Raises BudgetTooSmall."""
        with self._lock:
            if not self._reserve(self.size + self._passing + size) and size > 0:
                raise self.refuse(
                    BudgetTooSmall(
                        f"{name} was to be changed, for which a copy of {format_size(size)} must stay in memory, but "
                        f"{self._budget} has no room for it; raise it, or change the weights before penstock loads them"
                    )
                )
            self.size += size

    def refuse(self, error: PenstockError) -> PenstockError:
        """``error``, which says that something is not done with a weight. Where that leaves a change of the model half
        done, ``check_whole`` raises from now on."""
        self.refused = error
        if adapter := half_added_adapter():
            self._half_changed = (
                f'the adapter "{adapter}" is in a part of this model only, for it could not be added to the others '
                f"({error}); load the model again"
            )
        return error

    def check_whole(self) -> None:
        """Raise PenstockError if something was refused that had changed a part of the model by then."""
        if self._half_changed:
            raise PenstockError(self._half_changed)

    @contextmanager
    def room(self, size: int) -> Iterator[bool]:
        """Whether there is room for ``size`` bytes; kept free while the context lasts."""
        with self._lock:
            fits = self._reserve(self.size + self._passing + size)
            if fits:
                self._passing += size
        try:
            yield fits
        finally:
            if fits:
                with self._lock:
                    self._passing -= size
                    self._reserve(self.size + self._passing)
