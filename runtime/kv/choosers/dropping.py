"""Modes that keep a fixed budget of pages and drop the others, for good: window, H2O, SnapKV."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch
from torch.nn import functional

from ....tiering.kv.pages import Page
from ....tiering.kv.selection.kv_budget.budget import LEAST
from ....tiering.kv.selection.kv_budget.keeping import Keeping
from ....tiering.kv.selection.kv_budget.layers import distribute
from ..attention.few_rows import PageAttention
from ..cache.layer import PagedLayer, SequencePages
from .budgets import Budgets

PROMPT = 32
"""Queries from which on they are a prompt, whose last ones choose its pages."""
LAST = 64
"""Queries of a prompt that do."""
POOLED = 5
"""Tokens that share their attention with each other: one is nothing without its neighbours (SnapKV)."""


class Keeper:
    """The PageSelector of one layer. How much attention pages got is the attention_score of pages of keys."""

    drops = True

    def __init__(self, budgets: Budgets, keeping: Keeping) -> None:
        self._all, self._keeping = budgets, keeping
        self._needs: dict[int, list[float]] = {}  # by sequence: what a prompt's last queries gave to its pages
        self._share: dict[int, Fraction] = {}  # of all layers' pages

    def watched(self, rows: int) -> int:
        if self._keeping.scored == "all":
            return rows
        counts = self._keeping.scored == "last" or self._all.by_need
        return min(rows, LAST) if counts and rows >= PROMPT else 0

    def on_prefill(
        self, layer: PagedLayer, number: int, queries: int, masses: torch.Tensor | None, bias: torch.Tensor | None
    ) -> None:
        row, tokens = layer.rows[number], layer.shapes[0].tokens
        self._let_padding_go(layer, number, bias)
        if masses is not None:
            scores = masses
            if self._keeping.scored == "last":
                scores = functional.avg_pool1d(masses[None], POOLED, 1, POOLED // 2)[0]
            self._count(layer, row, range(len(row.keys.pages)), _by_page(scores, tokens))
            if self._all.by_need and queries >= PROMPT:
                by_page = zip(row.keys.pages, _by_page(masses, tokens), strict=True)
                self._needs[number] = [mass for page, mass in by_page if not page.is_gone]
                self._deal(layer, number)
                return
        self._settle(layer, number)

    def choose(self, look: PageAttention, number: int) -> Sequence[int]:
        pages = _there(look.row)
        if len(pages) == look.count:
            look.read_all()
        else:
            look.read(pages)
        self._all.looked(look.count, len(pages))
        return pages

    def on_attention(self, look: PageAttention, number: int, pages: Sequence[int], probabilities: torch.Tensor) -> None:
        if self._keeping.scored == "all":
            self._count(look.layer, look.row, pages, look.masses(pages, probabilities))
        self._let_padding_go(look.layer, number, look.last_bias)
        self._settle(look.layer, number)

    def on_append(self, layer: PagedLayer, row: SequencePages) -> None:
        """Nothing."""

    def expected(self, number: int, row: SequencePages) -> Iterable[Page]:
        there = _there(row)
        return (track.pages[page] for track in row.tracks for page in there)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _count(self, layer: PagedLayer, row: SequencePages, pages: Sequence[int], masses: Sequence[float]) -> None:
        if self._keeping.scored == "no":
            return
        self._all.counted_mass += sum(masses)
        found = [(row.keys.pages[number], mass) for number, mass in zip(pages, masses, strict=True)]
        there = [(page, mass) for page, mass in found if not page.is_gone]
        anew = self._keeping.scored != "all"
        layer.tier.pool.score([page for page, _ in there], [mass for _, mass in there], anew=anew)

    def _let_padding_go(self, layer: PagedLayer, number: int, bias: torch.Tensor | None) -> None:
        """Pages that the last query does not see, at the beginning: no query will, and the next ones are the first."""
        if bias is not None:
            unseen = int((bias > torch.finfo(bias.dtype).min / 2).to(torch.uint8).argmax())
            row = layer.rows[number]
            layer.let_go(row, [page for page in _there(row) if page < unseen // layer.shapes[0].tokens])

    def _deal(self, layer: PagedLayer, number: int) -> None:
        """One more layer is known: deal the pages of all layers to those that are."""
        layers = [(each, each.chooser) for each in layer.siblings if isinstance(each.chooser, Keeper)]
        total = len(layers) * self._all.budget.pages(layer.length + 1, layer.shapes[0].tokens)
        known = [(each, chooser) for each, chooser in layers if number in chooser._needs]
        counts = distribute([chooser._needs[number] for _, chooser in known], total, least=LEAST)
        for (each, chooser), count in zip(known, counts, strict=True):
            # Later layers wait for their own turn: what is known of them is of the prompt before.
            chooser._share[number] = Fraction(count, total)
            chooser._settle(each, number)
            if each is layer:
                break

    def _pages(self, layer: PagedLayer, number: int) -> int:
        """The budget with one more token."""
        pages, share = self._all.budget.pages(layer.length + 1, layer.shapes[0].tokens), self._share.get(number)
        if share is None:
            return pages
        layers = sum(isinstance(each.chooser, Keeper) for each in layer.siblings)
        return max(LEAST, int(share * layers * pages))

    def _settle(self, layer: PagedLayer, number: int) -> None:
        """Let pages go that are beyond the budget, or will be with the next token."""
        row = layer.rows[number]
        there = _there(row)
        attention_score = {page: row.keys.pages[page].attention_score for page in there}
        if layer.length % layer.shapes[0].tokens == 0:
            attention_score[len(row.keys.pages)] = 0.0  # the next token's
        budget = self._pages(layer, number)
        if len(attention_score) <= budget:
            return
        pages = [*attention_score]
        stay = {pages[place] for place in self._keeping.stay([*attention_score.values()], budget)}
        gone = layer.let_go(row, [page for page in there if page not in stay])
        self._all.dropped += len(gone)
        self._all.dropped_mass += sum(attention_score[page] for page in gone)


def _by_page(masses: torch.Tensor, tokens: int) -> list[float]:
    """Sums of ``masses`` [T] over pages of so many tokens."""
    sums: list[float] = functional.pad(masses, (0, -len(masses) % tokens)).view(-1, tokens).sum(-1).tolist()
    return sums


def _there(row: SequencePages) -> list[int]:
    """Numbers of the pages that were not dropped."""
    return [number for number, page in enumerate(row.keys.pages) if not page.is_gone]
