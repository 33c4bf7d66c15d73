"""Measured cost of computing experts on the CPU. Older measurements count less (pure)."""

from collections.abc import Sequence

from .misses import Costs, Miss, cheapest, choose_for_cpu

_KEEP = 0.95  # weight of earlier measurements, per measurement
_PAUSE = 64  # decisions without one on the CPU after which one is tried again: the costs may have changed
_ALIKE = 1e-9


class MissCosts:
    """Seconds for an expert plus seconds for each of its rows: a line with the least relative errors."""

    def __init__(self) -> None:
        self._ee = self._er = self._rr = self._e = self._r = 0.0  # sums of products, see ``computed``
        self._idle = 0

    def computed(self, experts: int, rows: int, seconds: float) -> None:
        """The CPU took ``seconds`` > 0 for ``experts`` experts with ``rows`` rows in all."""
        expert, row = experts / seconds, rows / seconds
        self._ee, self._er = _KEEP * self._ee + expert * expert, _KEEP * self._er + expert * row
        self._rr = _KEEP * self._rr + row * row
        self._e, self._r = _KEEP * self._e + expert, _KEEP * self._r + row

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self._ee > 0

    @property
    def fit_line(self) -> tuple[float, float]:
        """Seconds for an expert and seconds for a row, both at least 0.

        While only one number of rows was seen, all time counts for rows. More rows then seem slower than they are, and
        are copied.
        """
        spread = self._ee * self._rr - self._er * self._er
        if spread > _ALIKE * self._ee * self._rr:
            expert = (self._e * self._rr - self._r * self._er) / spread
            row = (self._r * self._ee - self._e * self._er) / spread
            if row < 0:
                return self._e / self._ee, 0.0
            if expert >= 0:
                return expert, row
        return 0.0, self._r / self._rr

    def choose_for_cpu(self, misses: Sequence[Miss], *, copy: float, read: float, queued: int) -> frozenset[int]:
        """The experts among ``misses`` to compute on the CPU; arguments as for ``misses.choose_for_cpu``.

        One expert is chosen while nothing is known, and when none was chosen for long.
        """
        if not misses:
            return frozenset()
        if not self.known or self._idle >= _PAUSE:
            self._idle = 0
            return cheapest(misses)
        expert, row = self.fit_line
        chosen = choose_for_cpu(misses, Costs(copy, read, expert, row), queued=queued)
        self._idle = 0 if chosen else self._idle + 1
        return chosen
