"""The KV tier: what the caches of one loaded model share, pages, formats, the selection of pages."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ....kernels.kv.base import PageShape
from ....tiering.kv.page_size import choose_page_tokens
from ..pages.device_pages import UpperTier
from ..pages.pool import PagePool
from ..views.device_access import DevicePageAccess
from ..views.page_access import PageAccess
from ..views.selector import PageSelection, PageSelector, SelectionStats
from .formats import Encoding


@dataclass(slots=True)
class KVTier:
    """``pool`` is shared by caches. ``staging`` bytes may be taken for a layer's keys and values as transformers wants
    them, in one piece, with the tensors that eager attention makes of them."""

    pool: PagePool
    staging: int
    layers: int = 1
    """Layers of the model, about."""
    positions: int | None = None
    """Tokens that a context may have; None: not known."""
    page_tokens: int | None = None
    """Tokens of a page; None: by their size."""
    encoding: Encoding = field(default_factory=Encoding)
    device_pages: UpperTier | None = None
    """Pages on the device that the model computes on; None: the CPU computes."""
    selection: PageSelection | None = None
    """How attention selects pages; None: it reads all."""
    exact: set[int] = field(default_factory=set)
    """Layers of a cache that read all pages although they have a ``selection``: they cache latents, not keys."""

    def new_access(self, read_on: Callable[[], None]) -> PageAccess:
        """For the pages of one layer of one cache; ``read_on`` as in PageAccess."""
        if self.device_pages is None:
            return PageAccess(self.pool, read_on)
        return DevicePageAccess(self.pool, read_on, self.device_pages)

    def new_selector(self) -> PageSelector | None:
        """For one layer of one cache; None: attention reads all pages."""
        return None if self.selection is None else self.selection.new_selector()

    def selection_stats(self) -> SelectionStats:
        """What selectors have done since the model was loaded."""
        return SelectionStats() if self.selection is None else self.selection.counters.stats(len(self.exact))

    def close(self) -> None:
        """Wait for reads, writes and copies under way, and give the memory back; all pages are gone. Idempotent."""
        if self.device_pages is not None:
            self.device_pages.close()
        self.pool.close()

    def choose_shapes(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[PageShape, PageShape]:
        """The shapes of a page of keys and of a page of values, for ``keys`` and ``values`` [.., H, n, D]."""
        sizes = [x.shape[-3] * x.shape[-1] * x.itemsize for x in (keys, values)]
        tokens = self.page_tokens or choose_page_tokens(sizes, self.pool.memory.capacity, self.layers)
        key, value = (PageShape(x.shape[-3], tokens, x.shape[-1], x.dtype) for x in (keys, values))
        return key, value
