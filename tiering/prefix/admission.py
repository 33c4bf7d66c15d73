"""Which prefixes are worth writing (pure): those that come a second time. Most prompts never do.

Hashes seen are remembered by their first 16 bytes, in the order of arrival, the latest ``most`` of them.
"""

from collections.abc import Iterable, Sequence

SIZE = 16
"""Bytes of a hash that are remembered."""


class Seen:
    """Hashes that came before, from ``raw``: what ``dump`` gave, with what ``entries`` gave appended to it."""

    def __init__(self, raw: bytes, most: int) -> None:
        whole = len(raw) - len(raw) % SIZE  # a crash may have cut the last one off
        found = dict.fromkeys(raw[at : at + SIZE] for at in range(0, whole, SIZE))
        self.crowded = whole // SIZE > 2 * most or whole < len(raw)
        self._known = list(found)[-most:] if most else []
        self._set = set(self._known)

    def leading(self, hashes: Sequence[str]) -> int:
        """How many of the chain ``hashes`` were seen, from the first one on."""
        return next((n for n, hash_ in enumerate(hashes) if _short(hash_) not in self._set), len(hashes))

    def entries(self, hashes: Iterable[str]) -> bytes:
        """What to append for those of ``hashes`` that are new."""
        return b"".join(short for short in map(_short, hashes) if short not in self._set)

    def dump(self) -> bytes:
        """The table without what it has forgotten."""
        return b"".join(self._known)


def _short(hash_: str) -> bytes:
    return bytes.fromhex(hash_)[:SIZE]
