"""What a fixed budget of KV is for a loaded model, and what came of it."""

from dataclasses import dataclass

from ....tiering.kv.selection.kv_budget.budget import Budget
from ....tiering.kv.selection.kv_budget.keeping import Keeping


@dataclass(slots=True)
class Budgets:
    """Of all layers and steps since the model was loaded. ``keeping``: how pages are dropped; None: none is."""

    budget: Budget
    keeping: Keeping | None = None
    by_need: bool = False
    """Whether layers get pages by what their attention needs."""
    looks: int = 0
    """Of few rows of one sequence at one layer."""
    pages: int = 0
    """Pages that a look at the whole context would have been at."""
    looked_at: int = 0
    dropped: int = 0
    """Pages, each with the keys and the values of some tokens of one layer."""
    counted_mass: float = 0.0
    """Attention that was counted: for each head and query, what its softmax came to on all pages."""
    dropped_mass: float = 0.0
    """Of that, what pages had got that were dropped."""

    @property
    def dropped_share(self) -> float | None:
        """Of the attention that was counted, the share that pages had got which were dropped; None: not counted."""
        return self.dropped_mass / self.counted_mass if self.counted_mass else None

    def looked(self, pages: int, looked_at: int) -> None:
        self.looks += 1
        self.pages += pages
        self.looked_at += looked_at
