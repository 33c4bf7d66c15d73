"""Which kinds of experts modules the fast way computes bit for bit, as trials have shown."""

from collections.abc import Hashable


class Trust:
    """One per loaded model."""

    def __init__(self) -> None:
        self._known: dict[Hashable, bool] = {}

    def get(self, kind: Hashable) -> bool | None:
        """Whether all trials of ``kind`` gave equal bits; None without a trial."""
        return self._known.get(kind)

    def outcomes(self) -> dict[Hashable, bool]:
        """Whether all trials gave equal bits, by kind."""
        return dict(self._known)

    def set(self, kind: Hashable, equal: bool) -> None:
        """A trial of ``kind`` gave ``equal`` bits, or not."""
        self._known[kind] = self._known.get(kind, True) and equal
