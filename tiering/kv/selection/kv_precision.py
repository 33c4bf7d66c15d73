"""In which format a page of keys and values is kept once it is no longer recent (pure).

The first pages and the recent ones stay as they are: queries attend most to them ("Efficient Streaming Language Models
with Attention Sinks"). Of the others, those to which queries attended most become int8, the rest int4 (Yang et al., "No
Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision Quantization", MiKV). A page is
encoded once, when it leaves the recent window, and never again: losses do not add up. So the choice is made online,
against the pages that were chosen before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

AS_IS, FINE, COARSE = "as-is", "int8", "int4"


@dataclass(frozen=True, slots=True)
class ScoredPage:
    """A full page as the policy sees it, of one layer and sequence. ``mass`` is the attention that it has received so
    far (softmax probabilities, summed over queries and heads), ``age`` the queries that could attend to it. A page
    with ``encodable`` false holds numbers that only as-is has."""

    format: str = AS_IS
    mass: float = 0.0
    age: int = 1
    encodable: bool = True

    @property
    def importance(self) -> float:
        """Mass for each query: a page is not important for being old."""
        return self.mass / max(1, self.age)


@dataclass(frozen=True, slots=True)
class Window:
    """What stays as it is: the ``first`` pages, and each page behind which there are fewer than ``recent`` tokens."""

    page: int = 64
    first: int = 1
    recent: int = 128

    def leaving(self, tokens: int) -> range:
        """The pages that are outside, of a sequence of ``tokens``."""
        return range(self.first, max(self.first, (tokens - self.recent) // self.page))


def assign_formats(
    pages: Sequence[ScoredPage], tokens: int, *, window: Window, fine_share: float | Fraction
) -> dict[int, str]:
    """The format for each page that is outside ``window`` and not yet encoded, by its number; ``pages`` are all full
    pages of a sequence of ``tokens``, in order.

    Of all pages outside, at most the share ``fine_share`` is int8. A leaving page is int8 if it is among that many of
    the most important ones outside, encoded or not, and the share is not used up; of equal ones the first.
    """
    outside = [number for number in window.leaving(tokens) if pages[number].encodable]
    allowed = int(Fraction(fine_share) * len(outside))
    ranked = sorted(outside, key=lambda number: (-pages[number].importance, number))
    important = set(ranked[:allowed])
    left = allowed - sum(pages[number].format == FINE for number in outside)
    found = {}
    for number in ranked:
        if pages[number].format == AS_IS:
            fine = number in important and left > 0
            found[number] = FINE if fine else COARSE
            left -= fine
    return dict(sorted(found.items()))
