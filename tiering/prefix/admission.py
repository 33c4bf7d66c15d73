"""Admits a prefix to flash when it comes a second time (pure). Most prompts never do.

The first 16 bytes of the latest ``most`` hashes are remembered, in the order of arrival.
"""

from collections.abc import Iterable, Sequence

SIZE = 16
"""Bytes kept of each hash."""


class Seen:
    """Hashes seen before. ``raw`` is the output of ``dump`` with outputs of ``entries`` appended."""

    def __init__(self, raw: bytes, most: int) -> None:
        whole = len(raw) - len(raw) % SIZE  # a crash may have cut off the last one
        found = dict.fromkeys(raw[at : at + SIZE] for at in range(0, whole, SIZE))
        self.crowded = whole // SIZE > 2 * most or whole < len(raw)
        self._known = list(found)[-most:] if most else []
        self._set = set(self._known)

    def leading(self, hashes: Sequence[str]) -> int:
        """The number of leading hashes of the chain ``hashes`` that were seen."""
        return next((n for n, hash_ in enumerate(hashes) if _short(hash_) not in self._set), len(hashes))

    def entries(self, hashes: Iterable[str]) -> bytes:
        """The bytes to append for new ones among ``hashes``."""
        return b"".join(short for short in map(_short, hashes) if short not in self._set)

    def dump(self) -> bytes:
        """All remembered hashes as bytes."""
        return b"".join(self._known)


def _short(hash_: str) -> bytes:
    return bytes.fromhex(hash_)[:SIZE]
