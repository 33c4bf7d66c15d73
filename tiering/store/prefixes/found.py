"""A stored prefix, open for reading."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from ....kernels.closing import Closing
from ....kernels.memory.arena import Arena
from ...errors import PrefixDamaged, PrefixError
from ...prefix.chain import Chain
from ...prefix.header import Stored
from ...prefix.roles import layout_of
from ...prefix.tree import Match
from .prefix_file import STAGING, PrefixFile, in_steps

READERS = 4
"""Blocks read at the same time: while one is checked and handed on, the drive delivers others."""

Into = Callable[[int | None], Iterable[Sequence[memoryview]]]
"""Yields where the bytes of block number ``block`` of a prefix (None: of its state) go, as PrefixFile.read takes it."""


class PrefixOwner(Protocol):
    """The store that a prefix was found in."""

    def drop(self, name: str, length: int) -> None:
        """What lies behind ``length`` bytes of the file ``name`` is damaged."""

    def touch(self, names: Iterable[str]) -> None:
        """These files are in use."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """An extent to be read: of block ``block`` of the prefix, None for its state; ``number`` in its file."""

    file: PrefixFile
    extent: Stored
    block: int | None
    number: int


class Found(Closing):
    """A stored prefix, open for reading; has to be closed. ``tokens`` of it, of ``block`` each; ``bytes`` to be read.

    ``parts`` are the tensors of each block, ``state_parts`` those of its state, if it was asked for. All lie within
    their files, so they are no larger than these.
    """

    def __init__(self, store: PrefixOwner, chain: Chain, match: Match, files: Mapping[str, PrefixFile]) -> None:
        self._store, self._files = store, files
        self._names = match.names
        self.blocks, self.tokens, self.explicit = match.blocks, match.blocks * chain.block, match.explicit
        self.parts = files[match.spans[0].name].header.parts
        self.state_parts = files[match.state].header.state_parts if match.state else ()
        self._pieces: list[_Piece] = []
        for span in match.spans:
            for number in range(span.index, span.index + span.count):
                file = files[span.name]
                self._pieces.append(_Piece(file, file.header.blocks[number], len(self._pieces), number))
        if match.state:
            file = files[match.state]
            assert file.header.state is not None
            self._pieces.append(_Piece(file, file.header.state, None, len(file.header.blocks)))
        self.bytes = sum(piece.extent.length for piece in self._pieces)

    @classmethod
    def checked(cls, store: PrefixOwner, chain: Chain, match: Match, files: Mapping[str, PrefixFile]) -> "Found | None":
        """What ``match`` says ``files`` hold, if their headers say the same of ``chain``; else None."""
        first = 0
        for span in match.spans:
            header = files[span.name].header
            if header.first + span.index != first or not files[span.name].belongs(chain, first, span.count):
                return None
            if header.parts != files[match.spans[0].name].header.parts:
                return None
            if header.blocks[span.index + span.count - 1].end > files[span.name].length:
                return None
            first += span.count
        if match.state:
            header = files[match.state].header
            count = len(header.blocks)
            if header.first + count != match.blocks or header.state is None:
                return None
            if header.state.end > files[match.state].length:
                return None
            if not files[match.state].belongs(chain, header.first, count):
                return None
        return cls(store, chain, match, files)

    def read(self, into: Into, *, in_order: bool = False) -> bool:
        """Read all of it, several blocks at a time, on threads of its own; whether it is intact. ``in_order``: one
        block after the other, the state last.

        ``into`` is asked for each block and for the state. What is damaged is taken out of the store, and then nothing
        that was read is to be used.
        """
        readers = 1 if in_order else min(READERS, len(self._pieces))
        with ThreadPoolExecutor(readers, "penstock-prefix") as pool:
            problems = list(pool.map(lambda piece: _read(piece, into), self._pieces))
        for piece, problem in zip(self._pieces, problems, strict=True):
            if isinstance(problem, PrefixDamaged):
                self._store.drop(piece.file.path.name, piece.extent.offset if piece.number else 0)
        if any(problems):
            return False
        self._store.touch(self._names)
        return True

    def read_through(self) -> bool:
        """Read all of it as ``read`` does, and keep nothing."""
        extents = {piece.block: piece.extent for piece in self._pieces}
        return self.read(lambda block: in_steps(extents[block], Arena(STAGING, huge_pages=False).view(0, STAGING)))

    @property
    def layout(self) -> str:
        """What the headers say of the tensors, as ``layout_of`` names it."""
        return layout_of(self.parts, self.state_parts)

    def discard(self) -> None:
        """Take all its files out of the store: they are not what the model writes."""
        for name in self._names:
            self._store.drop(name, 0)

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        for file in self._files.values():
            file.close()


def _read(piece: _Piece, into: Into) -> PrefixError | None:
    """What is wrong with ``piece``, if it could not be read."""
    what = "the state" if piece.block is None else f"block {piece.number}"
    try:
        piece.file.read(piece.extent, into(piece.block), what)
    except PrefixError as error:
        return error
    return None
