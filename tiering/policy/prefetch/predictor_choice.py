"""Chooses the predictor of the next layer's experts whose guesses would save most time (pure).

Some forwards are trials: all predictors are asked, and their guesses are compared with the experts then used. A right
guess saves a read if the expert is not in memory. A wrong guess costs that read, as far as something else wants the
drive. ``Speculation`` decides whether guessing pays at all. The predictors themselves are in runtime/experts
(guessing.py, coactivation.py) and runtime/routing/router.py.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

ROUTER, CO_ACTIVATION, BOTH = "router", "co-activation", "both"
"""The next layer's own router on the input of the present layer; experts used one after the other; the experts that
both name."""

_EVERY = 16
"""One forward in 16 is a trial of all predictors."""
_KEEP = 0.95  # weight of earlier measurements, per trial
_CLEARLY = 1.05
"""Another predictor is followed when it saved more by this factor."""


@dataclass(slots=True)
class PredictorRecord:
    """The worth of one predictor's guesses, in blocks. Older guesses count less."""

    guessed: float = 0.0
    used: float = 0.0
    """Experts used, guessed or not."""
    right: float = 0.0
    saved: float = 0.0
    """Right guesses of experts not in memory."""
    wasted: float = 0.0
    """Wrong guesses of experts not in memory."""
    seconds: float = 0.0
    """Time spent guessing."""

    @property
    def precision(self) -> float:
        """Share of guesses that came true; 0 without a guess."""
        return self.right / self.guessed if self.guessed else 0.0

    @property
    def recall(self) -> float:
        """Share of used experts that were guessed; 0 if none was used."""
        return self.right / self.used if self.used else 0.0

    def gain(self, *, price: float, read_seconds: float) -> float:
        """Seconds saved. A read takes ``read_seconds``; a read in vain costs the share ``price`` of that."""
        return (self.saved - price * self.wasted) * read_seconds - self.seconds

    def fade(self) -> None:
        for name in ("guessed", "used", "right", "saved", "wasted", "seconds"):
            setattr(self, name, getattr(self, name) * _KEEP)


class Predictors:
    """Predictors by name, in the order of trust. The first is followed until another one saves more."""

    def __init__(self, names: Iterable[str]) -> None:
        self._records = {name: PredictorRecord() for name in names}
        self.followed = next(iter(self._records))
        """The predictor whose guesses are used."""
        self.trial = False
        """Whether this forward is a trial."""
        self._forwards = 0

    @property
    def records(self) -> Mapping[str, PredictorRecord]:
        """The record of each predictor."""
        return self._records

    def tick(self, *, price: float, read_seconds: float) -> None:
        """A forward begins. A read takes ``read_seconds``; a read in vain costs the share ``price`` of that, 0 to 1."""
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
        """Judge the trial guess of predictor ``name`` for one layer. ``absent`` experts were not in memory."""
        record = self._records[name]
        right = set(guessed).intersection(used)
        record.guessed += len(guessed)
        record.used += len(used)
        record.right += len(right)
        record.saved += len(right.intersection(absent))
        record.wasted += len(set(absent).intersection(guessed) - right)
        record.seconds += seconds
