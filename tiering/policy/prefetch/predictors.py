"""Which of several predictors of the next layer's experts to follow (pure): the one whose guesses would save most.

From time to time, for a forward, all of them are asked, and their guesses compared with what was used then: a guess
that comes true saves a read if the expert is not in memory, one that does not costs that read as far as the drive is
wanted for something else. Whether guessing pays at all is for ``Speculation`` to say.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

ROUTER, CO_ACTIVATION, BOTH = "router", "co-activation", "both"
"""The next layer's own router on the input of the present layer; experts used one after the other; the experts that
both name."""

_EVERY = 16
"""One forward in so many is a trial of all predictors."""
_KEEP = 0.95  # of what was measured before, per trial
_CLEARLY = 1.05
"""By which another predictor must have saved more to be followed instead."""


@dataclass(slots=True)
class Record:
    """What guesses of one predictor were worth, in blocks; older ones count less."""

    guessed: float = 0.0
    used: float = 0.0
    """Of all that was used, guessed or not."""
    right: float = 0.0
    saved: float = 0.0
    """Right, and not in memory."""
    wasted: float = 0.0
    """Wrong, and not in memory."""
    seconds: float = 0.0
    """The time that it took to guess."""

    @property
    def precision(self) -> float:
        """The share of guesses that came true; 0 without a guess."""
        return self.right / self.guessed if self.guessed else 0.0

    @property
    def recall(self) -> float:
        """The share of what was used that was guessed; 0 where nothing was used."""
        return self.right / self.used if self.used else 0.0

    def gain(self, *, price: float, read_seconds: float) -> float:
        """Seconds saved, where a read takes ``read_seconds`` and one in vain costs ``price`` of that."""
        return (self.saved - price * self.wasted) * read_seconds - self.seconds

    def fade(self) -> None:
        for name in ("guessed", "used", "right", "saved", "wasted", "seconds"):
            setattr(self, name, getattr(self, name) * _KEEP)


class Predictors:
    """``names`` in the order of trust; the first is followed until another one has shown to save more."""

    def __init__(self, names: Iterable[str]) -> None:
        self._records = {name: Record() for name in names}
        self.followed = next(iter(self._records))
        """Whose guesses count."""
        self.trial = False
        """Whether all are asked in this forward."""
        self._forwards = 0

    @property
    def records(self) -> Mapping[str, Record]:
        """What each has shown until now."""
        return self._records

    def tick(self, *, price: float, read_seconds: float) -> None:
        """One more forward begins. A read takes ``read_seconds`` now; one in vain costs ``price`` of that, 0 to 1."""
        if self.trial:
            gains = {
                name: record.gain(price=price, read_seconds=read_seconds) for name, record in self._records.items()
            }
            best = max(gains, key=gains.__getitem__)
            if gains[best] > max(0.0, gains[self.followed]) * _CLEARLY:
                self.followed = best
        self.trial = self._forwards % _EVERY == 0
        self._forwards += 1
        if self.trial:
            for record in self._records.values():
                record.fade()

    def judge(
        self, name: str, *, guessed: Collection[int], used: Collection[int], absent: Collection[int], seconds: float
    ) -> None:
        """In a trial ``name`` guessed these experts of a layer, of which ``absent`` were not in memory; it took
        ``seconds``."""
        record = self._records[name]
        right = set(guessed).intersection(used)
        record.guessed += len(guessed)
        record.used += len(used)
        record.right += len(right)
        record.saved += len(right.intersection(absent))
        record.wasted += len(set(absent).intersection(guessed) - right)
        record.seconds += seconds
