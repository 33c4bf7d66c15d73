"""Which request computes a beginning that others have too, and who waits for it (pure).

Beginnings are whole blocks of a prompt, named by the hashes of a chain. The first request that begins computes what it
shares with those that wait, and what it has computed is kept as long as somebody may still begin with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MOST = 4
"""Beginnings that are kept of one prompt: the longest ones."""


@dataclass(frozen=True, slots=True)
class Role:
    """How a request begins: it goes on behind the beginning ``has``, and gives those in ``makes``: their numbers of
    blocks, ascending. ``has`` is a hash; None: it begins with its first token."""

    has: str | None = None
    makes: tuple[int, ...] = ()


class Sharing:
    """The beginnings of all requests that are there."""

    def __init__(self) -> None:
        self._waiting: dict[int, Sequence[str]] = {}
        self._making: dict[int, set[str]] = {}
        self._chains: dict[int, Sequence[str]] = {}  # of those that make something
        self._kept: dict[str, None] = {}

    def offer(self, number: int, hashes: Sequence[str]) -> None:
        """A request waits. ``hashes`` name its beginnings, of one block, two, and so on."""
        self._waiting[number] = hashes

    def waits(self, number: int) -> bool:
        """Return whether another request computes a longer beginning of this one than there is."""
        hashes = self._waiting[number]
        coming = {hash_ for making in self._making.values() for hash_ in making}
        return any(hash_ in coming for hash_ in hashes[self._find_kept(hashes) :])

    def begin(self, number: int) -> Role:
        """Return how a request that waits begins. It waits no more."""
        hashes = self._waiting.pop(number)
        has = self._find_kept(hashes)
        common = {_count_common(hashes, other) for other in self._waiting.values()}
        makes = tuple(sorted(count for count in common if count > has)[-MOST:])
        if makes:
            self._making[number] = {hashes[count - 1] for count in makes}
            self._chains[number] = hashes
        return Role(has=hashes[has - 1] if has else None, makes=makes)

    def made(self, number: int, blocks: int) -> str | None:
        """The request ``number`` has computed ``blocks`` blocks. Returns the hash under which they are kept; None:
        nobody wants them any more."""
        making = self._making.get(number)
        if making is None:
            return None
        hash_ = self._chains[number][blocks - 1]
        making.discard(hash_)
        if not making:
            self.end(number)
        if not self._is_wanted(hash_):
            return None
        self._kept[hash_] = None
        return hash_

    def end(self, number: int) -> None:
        """The request has ended, or computes nothing for others for now. Idempotent."""
        self._waiting.pop(number, None)
        self._making.pop(number, None)
        self._chains.pop(number, None)

    def drop(self) -> list[str]:
        """Let go of beginnings that nobody waits for. Returns their hashes."""
        gone = [hash_ for hash_ in self._kept if not self._is_wanted(hash_)]
        for hash_ in gone:
            del self._kept[hash_]
        return gone

    def _find_kept(self, hashes: Sequence[str]) -> int:
        """Blocks of the longest of these beginnings that is kept."""
        return max((at for at, hash_ in enumerate(hashes, 1) if hash_ in self._kept), default=0)

    def _is_wanted(self, hash_: str) -> bool:
        return any(hash_ in hashes for hashes in self._waiting.values())


def _count_common(some: Sequence[str], others: Sequence[str]) -> int:
    count = 0
    for one, other in zip(some, others, strict=False):
        if one != other:
            break
        count += 1
    return count
