"""How many tokens a page of KV has (pure)."""

from collections.abc import Sequence

from ..units import KiB

LARGE = 256 * KiB
"""Bytes of the keys, or values, of a page from which on it takes no more tokens: every page costs some time of the
interpreter."""
OPEN = 1 / 4
"""Share of the memory that the newest pages of all layers, which cannot leave it, may take for one sequence."""
MOST_TOKENS, LEAST_TOKENS = 512, 16


def choose_page_tokens(sizes: Sequence[int], capacity: int, layers: int) -> int:
    """Tokens of a page, where one token has keys and values of these ``sizes`` in bytes in each of ``layers`` layers,
    whose pages share ``capacity`` bytes of memory."""
    tokens, room = MOST_TOKENS, capacity * OPEN / max(1, layers)
    while tokens > LEAST_TOKENS and (tokens * max(sizes) > LARGE or tokens * sum(sizes) > room):
        tokens //= 2
    return tokens
