"""Counts the weights that are kept in memory beside the arenas, because somebody changed them, against the budget."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...tiering.errors import BudgetTooSmall
from ...tiering.units import format_size


class KeptCopies:
    """Bytes of a model's weights beside the arenas of the tier that is computed on."""

    def __init__(self, budget: str, reserve: Callable[[int], bool]) -> None:
        """``reserve(size)`` has the arenas leave ``size`` bytes of ``budget``, a setting's name, in all; or tells that
        they cannot."""
        self._budget, self._reserve = budget, reserve
        self._lock = threading.Lock()
        self.size = 0
        """Bytes that are kept."""
        self.refused: BudgetTooSmall | None = None
        """The last refusal of ``keep``."""
        self._passing = 0

    def keep(self, name: str, size: int) -> None:
        """``size`` bytes more (fewer if negative) are kept, of the weight ``name``. Raises BudgetTooSmall."""
        with self._lock:
            if not self._reserve(self.size + self._passing + size) and size > 0:
                self.refused = BudgetTooSmall(
                    f"{name} was to be changed, for which a copy of {format_size(size)} must stay in memory, but "
                    f"{self._budget} has no room for it; raise it, or change the weights before penstock loads them"
                )
                raise self.refused
            self.size += size

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
