"""Modes that keep a fixed budget of pages and drop the others, for good: window, H2O, SnapKV."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch
from torch.nn import functional

from ....kernels.kv.base import PageShape
from ....tiering.kv.pages import Page
from ....tiering.kv.selection.kv_budget.budget import LEAST
from ....tiering.kv.selection.kv_budget.keeping import Keeping
from ....tiering.kv.selection.kv_budget.layers import distribute
from ..views.page_attention import PageAttention
from ..views.selector import AttendedLayer
from ..views.sequence import SequencePages
from .budgets import Budgets

PROMPT = 32
"""The least queries of a call that count as a prompt, whose last queries select its pages."""
LAST = 64
"""The number of these last queries."""
POOLED = 5
"""Tokens over which attention is averaged: a token is of little use without its neighbours (SnapKV)."""


class DroppingSelector:
    """The PageSelector of one layer: it keeps the pages that ``keeping`` says, and counts in ``budgets``. The attention
    that pages got is the ``attention_score`` of the pages of keys."""

    drops = True

    def __init__(self, budgets: Budgets, keeping: Keeping) -> None:
        self._all, self._keeping = budgets, keeping
        self._needs: dict[int, list[float]] = {}  # by sequence: attention of a prompt's last queries to its pages
        self._share: dict[int, Fraction] = {}  # by sequence: this layer's share of the pages of all layers

    def summary_bytes(self, shape: PageShape) -> int:
        """0: it makes none."""
        return 0

    def count_watched(self, rows: int) -> int:
        """All rows, the last ones, or none, as ``keeping`` scores pages."""
        if self._keeping.scored == "all":
            return rows
        counts = self._keeping.scored == "last" or self._all.by_need
        return min(rows, LAST) if counts and rows >= PROMPT else 0

    def on_prefill(
        self, layer: AttendedLayer, number: int, queries: int, masses: torch.Tensor | None, bias: torch.Tensor | None
    ) -> None:
        """Score the pages of sequence ``number`` and drop those beyond the budget."""
        sequence, tokens = layer.sequences[number], layer.access.tokens
        self._drop_padding(layer, number, bias)
        if masses is not None:
            scores = masses
            if self._keeping.scored == "last":
                scores = functional.avg_pool1d(masses[None], POOLED, 1, POOLED // 2)[0]
            self._count(layer, sequence, range(len(sequence.keys.pages)), _by_page(scores, tokens))
            if self._all.by_need and queries >= PROMPT:
                by_page = zip(sequence.keys.pages, _by_page(masses, tokens), strict=True)
                self._needs[number] = [mass for page, mass in by_page if not page.is_gone]
                self._divide(layer, number)
                return
        self._settle(layer, number)

    def choose(self, attention: PageAttention, number: int) -> Sequence[int]:
        """Read and return all pages that were not dropped. Raises what the pool raises."""
        pages = _there(attention.sequence)
        if len(pages) == attention.count:
            attention.read_all()
        else:
            attention.read(pages)
        self._all.note(attention.count, len(pages))
        return pages

    def on_attention(
        self,
        layer: AttendedLayer,
        number: int,
        attention: PageAttention,
        pages: Sequence[int],
        probabilities: torch.Tensor,
    ) -> None:
        """Score ``pages`` and drop those beyond the budget."""
        if self._keeping.scored == "all":
            self._count(layer, attention.sequence, pages, attention.sum_by_page(pages, probabilities))
        self._drop_padding(layer, number, attention.last_bias)
        self._settle(layer, number)

    def on_append(self, layer: AttendedLayer, sequence: SequencePages) -> None:
        """Do nothing."""

    def expect(self, number: int, sequence: SequencePages) -> Iterable[Page]:
        """All pages that were not dropped, keys first."""
        there = _there(sequence)
        return (table.pages[page] for table in sequence.tables for page in there)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _count(
        self, layer: AttendedLayer, sequence: SequencePages, pages: Sequence[int], masses: Sequence[float]
    ) -> None:
        if self._keeping.scored == "no":
            return
        self._all.counted_mass += sum(masses)
        found = [(sequence.keys.pages[number], mass) for number, mass in zip(pages, masses, strict=True)]
        there = [(page, mass) for page, mass in found if not page.is_gone]
        anew = self._keeping.scored != "all"
        layer.access.pool.score([page for page, _ in there], [mass for _, mass in there], anew=anew)

    def _drop_padding(self, layer: AttendedLayer, number: int, bias: torch.Tensor | None) -> None:
        """Drop the first pages if the last query does not see them: no later query will."""
        if bias is not None:
            unseen = int((bias > torch.finfo(bias.dtype).min / 2).to(torch.uint8).argmax())
            sequence = layer.sequences[number]
            layer.drop_pages(sequence, [page for page in _there(sequence) if page < unseen // layer.access.tokens])

    def _divide(self, layer: AttendedLayer, number: int) -> None:
        """Divide the pages of all layers among those whose needs are known: ``layer`` is one more."""
        layers = [(each, each.selector) for each in layer.siblings if isinstance(each.selector, DroppingSelector)]
        total = len(layers) * self._all.budget.pages(layer.length + 1, layer.access.tokens)
        known = [(each, selector) for each, selector in layers if number in selector._needs]
        counts = distribute([selector._needs[number] for _, selector in known], total, least=LEAST)
        for (each, selector), count in zip(known, counts, strict=True):
            # Later layers wait for their own turn: their needs are those of the prompt before.
            selector._share[number] = Fraction(count, total)
            selector._settle(each, number)
            if each is layer:
                break

    def _pages(self, layer: AttendedLayer, number: int) -> int:
        """The layer's budget when it has one more token."""
        pages, share = self._all.budget.pages(layer.length + 1, layer.access.tokens), self._share.get(number)
        if share is None:
            return pages
        layers = sum(isinstance(each.selector, DroppingSelector) for each in layer.siblings)
        return max(LEAST, int(share * layers * pages))

    def _settle(self, layer: AttendedLayer, number: int) -> None:
        """Drop the pages that are beyond the budget, or will be with the next token."""
        sequence = layer.sequences[number]
        there = _there(sequence)
        scores = {page: sequence.keys.pages[page].attention_score for page in there}
        if layer.length % layer.access.tokens == 0:
            scores[len(sequence.keys.pages)] = 0.0  # the next token's
        budget = self._pages(layer, number)
        if len(scores) <= budget:
            return
        pages = [*scores]
        stay = {pages[place] for place in self._keeping.stay([*scores.values()], budget)}
        gone = layer.drop_pages(sequence, [page for page in there if page not in stay])
        self._all.dropped += len(gone)
        self._all.dropped_mass += sum(scores[page] for page in gone)


def _by_page(masses: torch.Tensor, tokens: int) -> list[float]:
    """Sums of ``masses`` [T] over pages of ``tokens`` tokens."""
    sums: list[float] = functional.pad(masses, (0, -len(masses) % tokens)).view(-1, tokens).sum(-1).tolist()
    return sums


def _there(sequence: SequencePages) -> list[int]:
    """Numbers of the pages that were not dropped."""
    return [number for number, page in enumerate(sequence.keys.pages) if not page.is_gone]
