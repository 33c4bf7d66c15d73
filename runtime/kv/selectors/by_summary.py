"""The common part of selectors that find pages by summaries of their keys."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ....kernels.kv.base import PageShape
from ....kernels.kv.summaries.base import Bounds, Summary
from ....tiering.kv.pages import Page
from ..pages.summaries import PageSummaries
from ..views.page_attention import PageAttention
from ..views.selector import AttendedLayer
from ..views.sequence import SequencePages

_BATCH = 32
"""Pages that are summarised at a time."""
_FADE = 1.05
"""How much more the attention of each call counts than that of the call before."""


@dataclass(slots=True)
class LastSelection:
    """Of the last attention to a sequence: the query, and the pages whose keys and whose values were read."""

    query: torch.Tensor
    keys: tuple[int, ...]
    values: tuple[int, ...]
    sequence: "weakref.ref[SequencePages]"


class SummarySelector:
    """The PageSelector of one layer, with summaries of ``kind``, without ``choose``. It drops no page."""

    drops = False

    def __init__(self, kind: Summary) -> None:
        self._kind = kind
        self._weight = 1.0
        self._last: dict[int, LastSelection] = {}

    def summary_bytes(self, shape: PageShape) -> int:
        """Bytes of memory for the summary of a page of keys of this ``shape``; 0 where none can be made."""
        try:
            return self._kind.page_bytes(shape.heads, shape.tokens, shape.dim)
        except ValueError:  # there is no code for heads of this size: all pages are read
            return 0

    def count_watched(self, rows: int) -> int:
        """0: attention to prompts is not counted."""
        return 0

    def on_prefill(
        self, layer: AttendedLayer, number: int, queries: int, masses: torch.Tensor | None, bias: torch.Tensor | None
    ) -> None:
        """Do nothing."""

    def on_attention(
        self,
        layer: AttendedLayer,
        number: int,
        attention: PageAttention,
        pages: Sequence[int],
        probabilities: torch.Tensor,
    ) -> None:
        """Give ``pages`` an attention score, so that they stay in memory rather than others."""
        self._weight *= _FADE
        scores = [mass * self._weight for mass in attention.sum_by_page(pages, probabilities)]
        for table in attention.sequence.tables:
            attention.access.pool.score([table.pages[page] for page in pages], scores)

    def expect(self, number: int, sequence: SequencePages) -> Iterable[Page]:
        """The pages that the last attention to ``sequence`` read: the next one will probably read them too."""
        last = self._last.get(number)
        if last is None or last.sequence() is not sequence:
            return
        for table, pages in zip(sequence.tables, (last.keys, last.values), strict=True):
            yield from (table.pages[page] for page in pages if page < len(table.pages))

    def on_append(self, layer: AttendedLayer, sequence: SequencePages) -> None:
        """Summarise the sealed pages of ``sequence`` that have no summary yet. Raises what the pool raises."""
        kind, shape = self._kind, layer.access.shapes[0]
        done = 0 if sequence.summaries is None else sequence.summaries.count
        full = range(done, done + sum(page.sealed for page in sequence.keys.pages[done:]))
        if not full:
            return
        if sequence.summaries is None:
            page_bytes = self.summary_bytes(shape)
            if not page_bytes:
                return
            sequence.summaries = PageSummaries(layer.access.pool, kind, page_bytes)
        sequence.summaries.make_room(full.stop)
        for _, run in layer.access.hold_runs(sequence.keys, full, in_order=True):
            for start in range(0, len(run), _BATCH):
                some = run[start : start + _BATCH]
                keys = torch.empty(len(some), shape.heads, shape.tokens, shape.dim, dtype=shape.dtype)
                for page, out in zip(some, keys, strict=True):
                    layer.access.decode(0, page, out)
                sequence.summaries.add(kind.build(keys))

    def _bounds(self, attention: PageAttention, summaries: PageSummaries) -> Bounds:
        """Of the log-masses of all pages that have a summary."""
        return summaries.kind.log_bounds(
            attention.query,
            summaries.bytes,
            heads=attention.access.shapes[0].heads,
            tokens=attention.tokens,
            scaling=attention.softmax.scaling,
            softcap=attention.softmax.softcap,
        )

    def _read_ahead(self, attention: PageAttention, pages: Sequence[int]) -> None:
        """Start to read the keys of ``pages``, and their values after them."""
        wanted = [table.pages[page] for table in attention.sequence.tables for page in pages if page < len(table.pages)]
        if missing := [page for page in wanted if page.slot is None]:
            attention.access.pool.read_ahead(missing)
