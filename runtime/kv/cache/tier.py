"""What the KV caches of one loaded model share: pages, formats, how attention is computed."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ....kernels.kv.base import PageShape
from ....tiering.units import KiB
from ..pages.pool import PagePool
from .formats import Encoding

if TYPE_CHECKING:
    from ..attention.few_rows import PageSelector
    from ..choosers.budgets import Budgets
    from ..choosers.certified import Certificates
    from ..pages.device_pages import UpperTier

LARGE = 256 * KiB
"""Bytes of a plane below which a page takes more tokens: every page costs some time of the interpreter."""
OPEN = 1 / 4
"""Share of the memory that the newest pages of all layers, which cannot leave it, may take for one sequence."""
MOST_TOKENS, LEAST_TOKENS = 512, 16


@dataclass(frozen=True, slots=True)
class Chosen:
    """Of ``pages`` that there were for looks at chosen pages, ``looked_at`` were; ``dropped`` ones are gone, which had
    ``dropped_share`` of the attention that was counted. ``exact_layers`` looked at all pages all the same."""

    pages: int = 0
    looked_at: int = 0
    dropped: int = 0
    dropped_share: float = 0.0
    exact_layers: int = 0


@dataclass(slots=True)
class KVTier:
    """``pool`` is shared by caches. ``staging`` bytes may be taken for a layer's keys and values as transformers wants
    them, one behind the other, with what its own attention makes of them."""

    pool: PagePool
    staging: int
    layers: int = 1
    """Of the model, about."""
    positions: int | None = None
    """Tokens that a context may have; None: not known."""
    page_tokens: int | None = None
    """Tokens of a page; None: by their size."""
    encoding: Encoding = field(default_factory=Encoding)
    certificates: "Certificates | None" = None
    """What certified attention comes to; None: attention is not certified."""
    upper: "UpperTier | None" = None
    """Pages on the device that the model computes on; None: the CPU computes."""
    budgets: "Budgets | None" = None
    """What attention with a fixed budget comes to; None: it has none."""
    exact: set[int] = field(default_factory=set)
    """Layers of a cache that look at all pages although a chooser was to choose: it cannot for latents."""

    def chooser(self) -> "PageSelector | None":
        """Which pages a layer looks at; None: all."""
        from ..choosers.certified import Certified  # here: they know layers, which know tiers
        from ..choosers.dropping import Keeper
        from ..choosers.quest import Quest

        if self.certificates is not None:
            return Certified(self.certificates)
        if self.budgets is None:
            return None
        keeping = self.budgets.keeping
        return Quest(self.budgets) if keeping is None else Keeper(self.budgets, keeping)

    def chosen(self) -> Chosen:
        """What choosers have done since the model was loaded."""
        if self.certificates is not None:
            return Chosen(self.certificates.pages, self.certificates.looked_at, exact_layers=len(self.exact))
        if (all_ := self.budgets) is not None:
            return Chosen(all_.pages, all_.looked_at, all_.dropped, all_.dropped_share or 0.0, len(self.exact))
        return Chosen()

    def close(self) -> None:
        """Let what is under way end, give the memory back; all pages are gone. Idempotent."""
        if self.upper is not None:
            self.upper.close()
        self.pool.close()

    def shapes(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[PageShape, PageShape]:
        """Of pages for ``keys`` and ``values`` [.., H, n, D]."""
        tokens = self.page_tokens or self._tokens(*(x.shape[-3] * x.shape[-1] * x.itemsize for x in (keys, values)))
        key, value = (PageShape(x.shape[-3], tokens, x.shape[-1], x.dtype) for x in (keys, values))
        return key, value

    def _tokens(self, *each: int) -> int:
        """``each``: bytes of one token's keys, and of its values."""
        tokens, room = MOST_TOKENS, self.pool.memory.capacity * OPEN / max(1, self.layers)
        while tokens > LEAST_TOKENS and (tokens * max(each) > LARGE or tokens * sum(each) > room):
            tokens //= 2
        return tokens
