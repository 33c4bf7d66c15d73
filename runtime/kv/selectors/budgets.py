"""A fixed budget of KV for a loaded model, and counters of what its selectors did."""

from dataclasses import dataclass

from ....tiering.kv.selection.kv_budget.budget import Budget
from ....tiering.kv.selection.kv_budget.keeping import Keeping
from ..views.selector import SelectionStats


@dataclass(slots=True)
class Budgets:
    """``budget`` of each layer, and counters of all layers and steps since the model was loaded. ``keeping`` decides
    which pages stay; None: no page is dropped."""

    budget: Budget
    keeping: Keeping | None = None
    by_need: bool = False
    """Whether layers get pages by what their attention needs."""
    selections: int = 0
    """Attention of few queries to one sequence in one layer counts once."""
    pages: int = 0
    """Pages that attention to the whole contexts would have read."""
    pages_read: int = 0
    dropped: int = 0
    """Pages, each with the keys and the values of some tokens of one layer."""
    counted_mass: float = 0.0
    """Attention that was counted: the sum of the softmax of each head and query."""
    dropped_mass: float = 0.0
    """Of ``counted_mass``, the attention that dropped pages had got."""

    @property
    def dropped_share(self) -> float | None:
        """The share of the counted attention that dropped pages had got; None: attention was not counted."""
        return self.dropped_mass / self.counted_mass if self.counted_mass else None

    def note(self, pages: int, pages_read: int) -> None:
        """Count one selection: of ``pages``, ``pages_read`` were read."""
        self.selections += 1
        self.pages += pages
        self.pages_read += pages_read

    def stats(self, exact_layers: int) -> SelectionStats:
        """A snapshot."""
        return SelectionStats(self.pages, self.pages_read, self.dropped, self.dropped_share or 0.0, exact_layers)
