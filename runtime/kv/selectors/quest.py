"""Quest: each step reads the pages whose keys could fit its query best, as many as the budget has."""

import weakref
from collections.abc import Sequence

import torch

from ....kernels.kv.summaries.boxes import Boxes
from ....tiering.kv.selection.kv_budget.quest import top
from ..views.page_attention import PageAttention
from .budgets import Budgets
from .by_summary import LastSelection, SummarySelector


class QuestSelector(SummarySelector):
    """The PageSelector of one layer: it counts in ``budgets``. All heads and queries of a call read the same
    pages.

    From "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference" (Tang et al.)."""

    def __init__(self, budgets: Budgets) -> None:
        super().__init__(Boxes())
        self._all = budgets

    def choose(self, attention: PageAttention, number: int) -> Sequence[int]:
        """Read the keys of the best pages and return these; all pages where the budget has room for them. Raises what
        the pool raises."""
        summaries, budget = attention.sequence.summaries, self._all.budget.pages(attention.end, attention.tokens)
        pages: Sequence[int] = range(attention.count)
        if summaries is None or attention.count <= budget or attention.skip:
            attention.read_all()
        else:
            scores = _by_rank(self._bounds(attention, summaries).upper)
            pages = top(scores, range(summaries.count, attention.count), budget)
            self._read_ahead(attention, pages)
            attention.read(pages)
        self._all.note(attention.count, len(pages))
        self._last[number] = LastSelection(attention.query, tuple(pages), tuple(pages), weakref.ref(attention.sequence))
        return pages


def _by_rank(bounds: torch.Tensor) -> list[float]:
    """Scores of pages with ``bounds`` [Hq, R, n]: the page that any head ranks first comes first, and of those with the
    same best rank the one that ranks better with all. Bounds of different heads are not comparable."""
    count = bounds.shape[-1]
    order = bounds.flatten(0, 1).argsort(dim=-1, descending=True, stable=True)
    ranks = order.argsort(dim=-1).double()
    scores: list[float] = (-ranks.amin(0) - ranks.mean(0) / count).tolist()
    return scores
