"""Which pages stay where the others are dropped, for good.

The first pages and the recent ones stay in any case: queries attend most to them ("Efficient Streaming Language Models
with Attention Sinks"). What else stays is told by attention. Pages hold the keys of all heads of a layer, so heads have
no choices of their own, as they have in the papers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

FIRST = 1
"""Pages at the beginning that stay."""
RECENT = 2
"""Pages at the end that stay at least: the one being filled, and one before it."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """A mode. Pages are scored by the attention that they got: from ``"no"`` query, from the ``"last"`` ones of a
    prompt, or from ``"all"``, added up. The share ``recent`` of the budget is for the newest pages."""

    name: str
    recent: Fraction
    scored: Literal["no", "last", "all"]

    def stay(self, scores: Sequence[float], budget: int) -> list[int]:
        """Places of the pages that stay, ascending, at most ``budget``, which is 4 or more; ``scores`` are those of all
        pages that there are, in the order of their tokens. Of equal ones the newer stays."""
        count = len(scores)
        if count <= budget:
            return [*range(count)]
        recent = min(budget - FIRST, max(RECENT, int(self.recent * budget)))
        middle = range(FIRST, count - recent)
        heaviest = sorted(middle, key=lambda place: (-scores[place], -place))[: budget - FIRST - recent]
        return [*range(FIRST), *sorted(heaviest), *range(count - recent, count)]


WINDOW = Keeping("window", recent=Fraction(1), scored="no")
"""Sinks and a window."""
H2O = Keeping("h2o", recent=Fraction(1, 2), scored="all")
"""Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models"."""
SNAPKV = Keeping("snapkv", recent=Fraction(1, 4), scored="last")
"""Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation". What was generated has no score: of it,
the window stays, and what finds room."""

KEEPING: Mapping[str, Keeping] = {mode.name: mode for mode in (WINDOW, H2O, SNAPKV)}
