"""How many pages attention may have: so many tokens, or a share of those that there are."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from ....errors import ConfigError

LEAST = 4
"""Pages that any budget has: the first, the one being filled, one before it, and one to choose."""
_MOST_TOKENS = 1 << 40


@dataclass(frozen=True, slots=True)
class Budget:
    """Of a layer. One of both is given."""

    share: Fraction | None = None
    tokens: int | None = None

    def pages(self, length: int, page: int) -> int:
        """Pages of ``page`` tokens, for a context of ``length`` tokens."""
        if self.share is not None:
            return max(LEAST, math.ceil(self.share * length / page))
        assert self.tokens is not None
        return max(LEAST, self.tokens // page)


def parse_budget(value: object) -> Budget:
    """``"25%"``, or a number of tokens. Raises ConfigError when it is neither."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        share = Fraction(match[1]) / 100
        if 0 < share <= 1:
            return Budget(share=share)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST_TOKENS:
        return Budget(tokens=value)
    raise ConfigError(f'a budget is a share of the context like "25%", or a number of tokens like 4096, not {value!r}')
