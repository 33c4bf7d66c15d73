"""Counts the bit planes that experts are computed with."""

import threading
from collections import Counter


class PlaneCounts:
    """How often experts were computed with how many planes of their matrices. Thread-safe; one per loaded model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counter[int]()

    def add(self, planes: list[int]) -> None:
        """Experts are computed: one for each number of ``planes``."""
        with self._lock:
            self._counts.update(planes)

    def counts(self) -> dict[int, int]:
        """How often, by number of planes, ascending."""
        with self._lock:
            return dict(sorted(self._counts.items()))
