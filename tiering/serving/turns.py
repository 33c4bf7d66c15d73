"""Which of several models has the memory, and whose requests begin (pure).

Requests of the model that has the memory begin at once. When one of another model has waited for the seconds of
``patience``, no more begin. As soon as those that run have ended, the memory goes to the model whose request waits
longest, and all requests that wait for that model begin. So everybody has a turn: requests that come later never go
before one that has lost patience, and a turn ends when what began in it ends.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that has not begun."""

    number: int
    model: int
    since: float


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now: requests to start, or the model to give the memory to."""

    start: tuple[int, ...] = ()
    switch: int | None = None


@dataclass
class Turns:
    """The requests of several models, by number."""

    patience: float
    current: int | None = None
    """The model that has the memory."""
    waiting: list[Waiting] = field(default_factory=list)
    running: dict[int, int] = field(default_factory=dict)
    """The model of each request that has begun."""
    _fresh: bool = False
    """Whether nothing has begun yet in this turn."""

    def offer(self, number: int, model: int, now: float) -> None:
        """A request has come."""
        self.waiting.append(Waiting(number, model, now))

    def end(self, number: int) -> None:
        """A request has ended, wherever it was. Idempotent."""
        self.waiting = [each for each in self.waiting if each.number != number]
        self.running.pop(number, None)

    def begin(self, model: int | None) -> None:
        """The memory was given to ``model``; None: it was taken away."""
        self.current, self._fresh = model, True

    def decide(self, now: float) -> Step:
        """Return what to do now. What starts is noted as running."""
        own = [each for each in self.waiting if each.model == self.current]
        others = [each for each in self.waiting if each.model != self.current]
        lost = min((each.since + self.patience for each in others), default=None)
        if own and (self._fresh or lost is None or now < lost):
            self._fresh = False
            self.waiting = others
            self.running |= {each.number: each.model for each in own}
            return Step(start=tuple(each.number for each in own))
        if others and not self.running:
            return Step(switch=min(others, key=lambda each: (each.since, each.number)).model)
        return Step()
