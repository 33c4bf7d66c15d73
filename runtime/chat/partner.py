"""Who answers in a chat, and what an answer took."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..serving.text.replies import Said


@dataclass(frozen=True, slots=True)
class Took:
    """What an answer took; seconds since it was asked for."""

    prompt_tokens: int
    cached_tokens: int
    """Those of the prompt that were not computed again."""
    tokens: int
    first: float
    """Seconds until the first token."""
    last: float
    ending: str | None
    """Why it ended; None if it was stopped."""

    def __str__(self) -> str:
        rate = f", {(self.tokens - 1) / (self.last - self.first):.1f}/s" if self.last > self.first else ""
        kept = f", {self.cached_tokens} of them kept" if self.cached_tokens else ""
        return (
            f"{self.tokens} tokens{rate}; the prompt had {self.prompt_tokens}{kept}; "
            f"the first token came after {self.first:.2f} s"
        )


class Partner(Protocol):
    """Answers messages. ``latest``: what the latest answer took."""

    name: str
    latest: Took | None

    def answer(self, messages: Sequence[Mapping[str, str]], again: int) -> AsyncGenerator[Said, None]:
        """Yield the answer to ``messages``, for the ``again``-th time. Raises PenstockError."""
        ...

    def about(self) -> list[str]:
        """Lines about the state of the model."""
        ...
