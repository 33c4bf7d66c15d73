"""What all choosers do that find pages by summaries of their keys, whatever they choose."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ....kernels.kv.summaries.base import Bounds, Summary
from ....tiering.kv.pages import Page
from ..attention.few_rows import PageAttention
from ..cache.layer import PagedLayer, SequencePages
from ..pages.summaries import Summed

_BATCH = 32  # pages summed up at a time
_FADE = 1.05  # newer attention counts so much more, step by step


@dataclass(slots=True)
class Last:
    """The last look at a sequence: pages whose keys, and whose values, were read."""

    query: torch.Tensor
    keys: tuple[int, ...]
    values: tuple[int, ...]
    row: "weakref.ref[SequencePages]"


class Summing:
    """Of one layer; summaries are of ``kind``. No page is dropped."""

    drops = False

    def __init__(self, kind: Summary) -> None:
        self._kind = kind
        self._weight = 1.0
        self._last: dict[int, Last] = {}

    def watched(self, rows: int) -> int:
        return 0

    def on_prefill(
        self, layer: PagedLayer, number: int, queries: int, masses: torch.Tensor | None, bias: torch.Tensor | None
    ) -> None:
        """Nothing."""

    def on_attention(self, look: PageAttention, number: int, pages: Sequence[int], probabilities: torch.Tensor) -> None:
        """Pages that get attention stay in memory rather than others."""
        self._weight *= _FADE
        scores = [mass * self._weight for mass in look.masses(pages, probabilities)]
        for track in look.row.tracks:
            look.layer.tier.pool.score([track.pages[page] for page in pages], scores)

    def expected(self, number: int, row: SequencePages) -> Iterable[Page]:
        """What the next look at a sequence will probably read: what the last one did."""
        last = self._last.get(number)
        if last is None or last.row() is not row:
            return
        for track, pages in zip(row.tracks, (last.keys, last.values), strict=True):
            yield from (track.pages[page] for page in pages if page < len(track.pages))

    def on_append(self, layer: PagedLayer, row: SequencePages) -> None:
        """Sum up pages of ``row`` that are full and not summed up yet."""
        kind, shape = self._kind, layer.shapes[0]
        done = 0 if row.summaries is None else row.summaries.count
        full = range(done, done + sum(page.sealed for page in row.keys.pages[done:]))
        if not full:
            return
        if row.summaries is None:
            try:
                page_bytes = kind.page_bytes(shape.heads, shape.tokens, shape.dim)
            except ValueError:  # heads of a size that it has no code for: all pages are read
                return
            row.summaries = Summed(layer.tier.pool, kind, page_bytes)
        for _, run in layer.pieces(row.keys, full, in_order=True):
            for start in range(0, len(run), _BATCH):
                some = run[start : start + _BATCH]
                keys = torch.empty(len(some), shape.heads, shape.tokens, shape.dim, dtype=shape.dtype)
                for page, out in zip(some, keys, strict=True):
                    layer.decode(0, page, out)
                row.summaries.add(kind.build(keys))

    def _bounds(self, look: PageAttention, summed: Summed) -> Bounds:
        """Of all pages that are summed up."""
        return summed.kind.log_bounds(
            look.query,
            summed.bytes,
            heads=look.layer.shapes[0].heads,
            tokens=look.tokens,
            scaling=look.softmax.scaling,
            softcap=look.softmax.softcap,
        )

    def _ask(self, look: PageAttention, pages: Sequence[int]) -> None:
        """Have keys of ``pages`` read, and values after them."""
        wanted = [track.pages[page] for track in look.row.tracks for page in pages if page < len(track.pages)]
        if missing := [page for page in wanted if page.slot is None]:
            look.layer.tier.pool.read_ahead(missing)
