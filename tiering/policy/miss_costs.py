"""What computing experts on the CPU takes, as measured; the older measurements count less (pure)."""

from collections.abc import Sequence

from .misses import Costs, Miss, below, cheapest

_KEEP = 0.95  # of what was measured before, per measurement
_PAUSE = 64  # choices of none after which one is tried again: what was measured may not hold any more
_ALIKE = 1e-9


class MissCosts:
    """Seconds for an expert, and for each of its rows besides: the line with the least relative errors."""

    def __init__(self) -> None:
        self._ee = self._er = self._rr = self._e = self._r = 0.0  # sums of products, see computed
        self._idle = 0

    def computed(self, experts: int, rows: int, seconds: float) -> None:
        """The CPU took ``seconds``, more than none, for so many experts, with so many rows in all."""
        expert, row = experts / seconds, rows / seconds
        self._ee, self._er = _KEEP * self._ee + expert * expert, _KEEP * self._er + expert * row
        self._rr = _KEEP * self._rr + row * row
        self._e, self._r = _KEEP * self._e + expert, _KEEP * self._r + row

    @property
    def known(self) -> bool:
        return self._ee > 0

    @property
    def line(self) -> tuple[float, float]:
        """Seconds for an expert and for a row, neither below none; all of it for rows while only one number of rows was
        seen: then more are thought to take longer than they do, and are copied."""
        spread = self._ee * self._rr - self._er * self._er
        if spread > _ALIKE * self._ee * self._rr:
            expert = (self._e * self._rr - self._r * self._er) / spread
            row = (self._r * self._ee - self._e * self._er) / spread
            if row < 0:
                return self._e / self._ee, 0.0
            if expert >= 0:
                return expert, row
        return 0.0, self._r / self._rr

    def below(self, misses: Sequence[Miss], *, copy: float, read: float, queued: int) -> frozenset[int]:
        """The experts among ``misses`` to compute on the CPU; the others as for ``misses.below``. While nothing is
        known, and when none was chosen for long, one of them."""
        if not misses:
            return frozenset()
        if not self.known or self._idle >= _PAUSE:
            self._idle = 0
            return cheapest(misses)
        expert, row = self.line
        chosen = below(misses, Costs(copy, read, expert, row), queued=queued)
        self._idle = 0 if chosen else self._idle + 1
        return chosen
