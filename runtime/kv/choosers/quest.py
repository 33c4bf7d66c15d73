"""Quest: each step looks at the pages whose keys could fit its query best, as many as the budget has."""

import weakref
from collections.abc import Sequence

import torch

from ....kernels.kv.summaries.boxes import Boxes
from ....tiering.kv.selection.kv_budget.quest import top
from ..attention.few_rows import PageAttention
from .budgets import Budgets
from .by_summary import Last, Summing


class Quest(Summing):
    """The PageSelector of one layer. Queries that are looked at together, and heads, look at the same pages."""

    def __init__(self, budgets: Budgets) -> None:
        super().__init__(Boxes())
        self._all = budgets

    def choose(self, look: PageAttention, number: int) -> Sequence[int]:
        summed, budget = look.row.summaries, self._all.budget.pages(look.end, look.tokens)
        pages: Sequence[int] = range(look.count)
        if summed is None or look.count <= budget or look.skip:
            look.read_all()
        else:
            scores = _by_rank(self._bounds(look, summed).upper)
            pages = top(scores, range(summed.count, look.count), budget)
            self._ask(look, pages)
            look.read(pages)
        self._all.looked(look.count, len(pages))
        self._last[number] = Last(look.query, tuple(pages), tuple(pages), weakref.ref(look.row))
        return pages


def _by_rank(bounds: torch.Tensor) -> list[float]:
    """Scores of pages with ``bounds`` [Hq, R, n]: the page that any head ranks first comes first, and of those with the
    same best rank the one that ranks better with all. Bounds of different heads are not comparable."""
    count = bounds.shape[-1]
    order = bounds.flatten(0, 1).argsort(dim=-1, descending=True, stable=True)
    ranks = order.argsort(dim=-1).double()
    scores: list[float] = (-ranks.amin(0) - ranks.mean(0) / count).tolist()
    return scores
