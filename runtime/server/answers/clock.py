"""When things happened to a request."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Clock:
    """When things happened, in seconds of one clock."""

    asked: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float | None = None
    tokens: int = 0

    def note(self) -> float | None:
        """A token has come. Returns the seconds until the first one, if it is that."""
        self.last = time.perf_counter()
        self.tokens += 1
        if self.first is not None:
            return None
        self.first = self.last
        return self.first - self.asked

    @property
    def prompt_seconds(self) -> float:
        """Seconds until the first token: waiting, and reading the prompt."""
        return (self.first or time.perf_counter()) - self.asked

    @property
    def answer_seconds(self) -> float:
        """Seconds from the first token to the last one."""
        return 0.0 if self.first is None or self.last is None else self.last - self.first

    def report(self) -> dict[str, float | None]:
        """For people who ask how fast it was."""
        rate = (self.tokens - 1) / self.answer_seconds if self.answer_seconds else None
        return {"first_token_s": self.prompt_seconds, "answer_s": self.answer_seconds, "tokens_per_second": rate}
