"""What all selectors do that find pages by summaries of their keys, whatever they choose."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ....kernels.kv.summaries.base import Bounds, Summary
from ....tiering.kv.pages import Page
from ..pages.summaries import PageSummaries
from ..views.page_attention import PageAttention
from ..views.selector import AttendedLayer
from ..views.sequence import SequencePages

_BATCH = 32  # pages summed up at a time
_FADE = 1.05  # newer attention counts so much more, step by step


@dataclass(slots=True)
class Last:
    """The last look at a sequence: pages whose keys, and whose values, were read."""

    query: torch.Tensor
    keys: tuple[int, ...]
    values: tuple[int, ...]
    sequence: "weakref.ref[SequencePages]"


class SummarySelector:
    """Of one layer; summaries are of ``kind``. No page is dropped."""

    drops = False

    def __init__(self, kind: Summary) -> None:
        self._kind = kind
        self._weight = 1.0
        self._last: dict[int, Last] = {}

    def watched(self, rows: int) -> int:
        return 0

    def on_prefill(
        self, layer: AttendedLayer, number: int, queries: int, masses: torch.Tensor | None, bias: torch.Tensor | None
    ) -> None:
        """Nothing."""

    def on_attention(
        self,
        layer: AttendedLayer,
        number: int,
        attention: PageAttention,
        pages: Sequence[int],
        probabilities: torch.Tensor,
    ) -> None:
        """Pages that get attention stay in memory rather than others."""
        self._weight *= _FADE
        for page, mass in zip(pages, attention.masses(pages, probabilities), strict=True):
            for table in attention.sequence.tables:
                table.pages[page].attention_score += mass * self._weight

    def expected(self, number: int, sequence: SequencePages) -> Iterable[Page]:
        """What the next look at a sequence will probably read: what the last one did."""
        last = self._last.get(number)
        if last is None or last.sequence() is not sequence:
            return
        for table, pages in zip(sequence.tables, (last.keys, last.values), strict=True):
            yield from (table.pages[page] for page in pages if page < len(table.pages))

    def on_append(self, layer: AttendedLayer, sequence: SequencePages) -> None:
        """Sum up pages of ``sequence`` that are full and not summed up yet."""
        kind, shape = self._kind, layer.access.shapes[0]
        done = 0 if sequence.summaries is None else sequence.summaries.count
        full = range(done, done + sum(page.sealed for page in sequence.keys.pages[done:]))
        if not full:
            return
        if sequence.summaries is None:
            try:
                page_bytes = kind.page_bytes(shape.heads, shape.tokens, shape.dim)
            except ValueError:  # heads of a size that it has no code for: all pages are read
                return
            sequence.summaries = PageSummaries(layer.access.pool, kind, page_bytes)
        for _, run in layer.access.held_runs(sequence.keys, full, in_order=True):
            for start in range(0, len(run), _BATCH):
                some = run[start : start + _BATCH]
                keys = torch.empty(len(some), shape.heads, shape.tokens, shape.dim, dtype=shape.dtype)
                for page, out in zip(some, keys, strict=True):
                    layer.access.decode(0, page, out)
                sequence.summaries.add(kind.build(keys))

    def _bounds(self, attention: PageAttention, summed: PageSummaries) -> Bounds:
        """Of all pages that are summed up."""
        return summed.kind.log_bounds(
            attention.query,
            summed.bytes,
            heads=attention.access.shapes[0].heads,
            tokens=attention.tokens,
            scaling=attention.softmax.scaling,
            softcap=attention.softmax.softcap,
        )

    def _read_ahead(self, attention: PageAttention, pages: Sequence[int]) -> None:
        """Have keys of ``pages`` read, and values after them."""
        wanted = [table.pages[page] for table in attention.sequence.tables for page in pages if page < len(table.pages)]
        if missing := [page for page in wanted if page.slot is None]:
            attention.access.pool.read_ahead(missing)
