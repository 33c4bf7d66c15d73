"""Which pages of keys and values attention reads until what it leaves out is certainly little (pure).

Summaries bound the part of the softmax that each page can have. Pages are read in the order of these bounds until, for
every head, those not read can have no more than epsilon of the whole; that share is the certificate. It bounds the
error of attention's output too: at most the share times the greatest distance of two values. (Bounds of pages: "Quest:
Query-Aware Sparsity for Efficient Long-Context LLM Inference", which reads a fixed number of them.)

Two rounds of reads are enough. The first has the pages that no choice in this order could do without; once these are
read, most of the softmax is known, and the second has what certainly suffices for the rest.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Run:
    """Pages ``first`` to ``first + count - 1``, which are read at once."""

    first: int
    count: int

    @property
    def pages(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was read for one layer of one step, and what that leaves out."""

    pages: tuple[int, ...]
    """That were read, in order."""
    omitted: tuple[float, ...]
    """For each head, the most of its softmax that other pages can have, 0 to 1."""
    rounds: int
    """Of reads that waited for each other."""

    @property
    def most(self) -> float:
        return max(self.omitted, default=0.0)


class Masses(Protocol):
    """Bounds of the pages' parts, and what was read of them; whoever reads a page tells it so."""

    def omitted(self) -> Sequence[float]:
        """For each head, the most of its softmax that pages which were not read can have."""
        ...

    def needed(self, epsilon: float, *, hopeful: bool) -> Sequence[int]:
        """Pages to read, in order, so that no head has more omitted: certainly, or else if all that is bounded turns
        out to be as great as its bound."""
        ...


class NotBounded(ValueError):
    """After all pages that were asked for, the certificate does not hold: they were not added to the masses."""


def select(
    masses: Masses, *, epsilon: float, gap: int = 0, longest: int = 64, at_first: Iterable[int] = ()
) -> Generator[list[Run], None, Certificate]:
    """Yields what to read next; before it goes on, those pages have been read and added to ``masses``. Returns when no
    head can have more than ``epsilon`` omitted.

    ``at_first``: pages that the first round has besides, as those of the last step. ``gap`` and ``longest`` as in
    ``runs``. Raises ValueError for an epsilon that is not between 0 and 1, NotBounded if pages were not added.
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon is {epsilon}; it must be between 0 and 1")
    read: set[int] = set()
    rounds = 0
    extra = set(at_first)
    while (most := max(masses.omitted(), default=0.0)) > epsilon:
        wanted = {*masses.needed(epsilon, hopeful=rounds == 0), *extra} - read
        if not wanted:
            raise NotBounded(f"all needed pages were asked for, and {most:.3g} of the softmax may still be missing")
        batch = runs(wanted, gap=gap, longest=longest, read=read)
        extra.clear()
        rounds += 1
        read.update(page for run in batch for page in run.pages)
        yield batch
    return Certificate(tuple(sorted(read)), tuple(masses.omitted()), rounds)


def runs(pages: Iterable[int], *, gap: int, longest: int, read: Iterable[int] = ()) -> list[Run]:
    """``pages`` in order as few reads: neighbours are read together, and so are up to ``gap`` pages between two, where
    that takes less time than another read. Nothing is read again that was ``read``. At most ``longest`` in a run."""
    done = set(read)
    found: list[Run] = []
    for page in sorted(pages):
        if found:
            last = found[-1]
            between = range(last.first + last.count, page)
            length = page + 1 - last.first
            if len(between) <= gap and length <= longest and done.isdisjoint(between):
                found[-1] = Run(last.first, length)
                continue
        found.append(Run(page, 1))
    return found


@dataclass(frozen=True, slots=True)
class Selection:
    """The last one of a layer, while queries stay close to the one it was made for."""

    pages: tuple[int, ...]

    def reused(self, cosines: Iterable[float], *, least: float = 0.9) -> tuple[int, ...]:
        """Its pages, to be read before the bounds are known, if every head's query has a cosine of ``least`` with the
        one it was made for. That saves a round; what is missing is read after, so the certificate holds either way."""
        return self.pages if all(cosine >= least for cosine in cosines) else ()
