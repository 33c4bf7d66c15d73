"""Whether reading is the limit (pure): as long as computing waits for the drive, exact products cost no time."""

_WEIGHT = 1 / 8
"""Of the latest round in the mean."""
LITTLE, MUCH = 0.05, 0.5
"""Share of a round that is spent waiting for reads: below the first reading is the limit no more, above the second it
is again. Between them all stays as it is, since products in the other order take another time."""


class ReadingLimit:
    """Says whether answers are to be ``exact``, by how much of the last rounds was waiting."""

    def __init__(self) -> None:
        self.exact = True
        self._share = 1.0

    def note(self, seconds: float, waited: float) -> None:
        """A round took ``seconds``, of which it ``waited`` for reads."""
        if seconds <= 0:
            return
        self._share += _WEIGHT * (min(1.0, waited / seconds) - self._share)
        if self.exact and self._share < LITTLE:
            self.exact = False
        elif not self.exact and self._share > MUCH:
            self.exact = True
