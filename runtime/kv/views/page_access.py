"""Reads the pages of one layer: holds them while they are used, decodes them, copies tokens out of them."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from ....kernels.kv.base import PageShape
from ....tiering.errors import ConfigError
from ....tiering.kv.pages import BlockTable, Page, runs
from ..pages.device_pages import UpperTier
from ..pages.pool import PagePool
from .sequence import SequencePages


class PageAccess:
    """The pages of one layer in ``pool``. ``read_on`` is called when pages were read and released: there may be room
    for more reads ahead. Methods that read raise what the pool raises: ReadError, BudgetTooSmall, Closed."""

    shapes: tuple[PageShape, PageShape]
    """Of a page of keys, and of a page of values. Not set before the first tokens."""
    device_pages: UpperTier | None = None
    """The copies of pages on the device that the model computes on; None: the CPU computes."""

    def __init__(self, pool: PagePool, read_on: Callable[[], None]) -> None:
        self.pool, self._read_on = pool, read_on

    @property
    def tokens(self) -> int:
        """Tokens of a page."""
        return self.shapes[0].tokens

    # --- pages in use -------------------------------------------------------------------------------------------------

    def hold_runs(
        self, table: BlockTable, numbers: Sequence[int], *, in_order: bool = False, read_on: bool = True
    ) -> Iterator[tuple[int, list[Page]]]:
        """Yield the pages of ``table`` with these ``numbers``, ascending, in runs of neighbours that are held until the
        next one is asked for, each with the number of its first page. Pages in memory come first, unless ``in_order``.
        ``read_on``: reading ahead goes on after each read; False in another thread than the one that uses the cache."""
        pool = self.pool
        pages = [table.pages[number] for number in numbers]
        here = pool.hold(pages)
        held = set(here)
        found = [*divide_runs(numbers, pages, held, pool.most)]
        if not in_order:
            found.sort(key=lambda run: run[1][0] not in held)
        try:
            for at, run in found:
                if run[0] in held:
                    yield at, run
                    continue
                pool.fetch(run)
                try:
                    yield at, run
                finally:
                    pool.release(run)
                    if read_on:
                        self._read_on()
        finally:
            pool.release(here)

    def hold_batches(self, table: BlockTable, numbers: Sequence[int]) -> Iterator[tuple[int, list[Page]]]:
        """Yield the pages of ``table`` with these ``numbers``, in this order, as many at a time as can be held, in one
        format; each time with the place of the first of them among ``numbers``."""
        pool = self.pool
        pages = [table.pages[number] for number in numbers]
        if missing := [page for page in pages if page.slot is None]:
            pool.read_ahead(missing)
        at = 0
        for _, group in groupby(pages, key=lambda page: page.format):
            some = [*group]
            each = max(1, pool.memory.ring // 4 // some[0].size)
            for start in range(0, len(some), each):
                part = some[start : start + each]
                here = pool.hold(part)
                try:
                    if len(here) < len(part):
                        held = set(here)
                        here += pool.fetch([page for page in part if page not in held])
                    yield at, part
                finally:
                    pool.release(here)
                at += len(part)
        self._read_on()

    # --- their tokens -------------------------------------------------------------------------------------------------

    def find_kept_spans(self, sequence: SequencePages, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Of the tokens from number ``start`` to ``end``, the spans that were not dropped: where each begins and
        ends."""
        tokens, first = self.tokens, sequence.keys.first
        pages = sequence.keys.pages[start // tokens - first : -(-end // tokens) - first]
        for is_gone, group in groupby(pages, key=lambda page: page.is_gone):
            span = [*group]
            if not is_gone:
                yield max(start, span[0].index * tokens), min(end, (span[-1].index + 1) * tokens)

    def decode(self, side: int, page: Page, out: torch.Tensor) -> None:
        """Decode ``page``, which is held and has keys (``side`` 0) or values (1), into ``out`` [H, P, D]."""
        format: Any = page.format
        bytes_ = self.pool.view(page)
        (format.decode_values if side else format.decode_keys)(bytes_, self.shapes[side], out)

    def copy(self, sequence: SequencePages, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of ``count`` tokens from number ``start`` on, in host memory, [H, count, D] each. Raises
        ConfigError where some were dropped."""
        return self.copy_plane(sequence, 0, start, count), self.copy_plane(sequence, 1, start, count)

    def copy_plane(
        self, sequence: SequencePages, side: int, start: int, count: int, *, read_on: bool = True
    ) -> torch.Tensor:
        """As ``copy``, keys (``side`` 0) or values (1) alone; ``read_on`` as in ``hold_runs``."""
        if [*self.find_kept_spans(sequence, start, start + count)] != ([(start, start + count)] if count else []):
            raise ConfigError(
                "keys and values of this context were dropped, and something asked for all of them; this cache, or "
                'this model, needs [kv] attention = "exact"'
            )
        table, shape = sequence.tables[side], self.shapes[side]
        tokens = shape.tokens
        origin = start // tokens  # number of the first page
        pages = -(-(start + count) // tokens) - origin if count else 0
        whole = torch.empty(shape.heads, pages * tokens, shape.dim, dtype=shape.dtype)
        first = origin - table.first
        for at, run in self.hold_runs(table, range(first, first + pages), read_on=read_on):
            for offset, page in enumerate(run):
                to = (at - first + offset) * tokens
                self.decode(side, page, whole[:, to : to + tokens])
        skip = start - origin * tokens
        return whole[:, skip : skip + count].contiguous()

    def gather(self, sequence: SequencePages, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``copy``, where the model computes."""
        return self.copy(sequence, start, count)


def divide_runs(
    numbers: Sequence[int], pages: Sequence[Page], held: set[Page], most: int
) -> Iterator[tuple[int, list[Page]]]:
    """Divide ``pages``, with these ``numbers``, into runs of neighbours in one format, each with the number of its
    first page. The pages of a run are all ``held``, or none is, and the run is one read of at most ``most`` bytes."""

    def kind(at: int) -> tuple[bool, Hashable, int]:
        return pages[at] in held, pages[at].format, numbers[at] - at  # the last is the same for neighbours

    for (here, *_), group in groupby(range(len(pages)), key=kind):
        places = [*group]
        some = [pages[at] for at in places]
        number = numbers[places[0]]
        for run in [some] if here else runs(some, most):
            yield number, run
            number += len(run)
