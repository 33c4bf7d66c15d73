"""What the KV caches of one loaded model share: pages, formats, how attention is computed."""

from dataclasses import dataclass, field

import torch

from ...kernels.kv.as_is import AsIs
from ...kernels.kv.base import KVFormat, PageShape
from ...tiering.units import KiB
from .pool import PagePool

LARGE = 256 * KiB
"""Bytes of a plane below which a page takes more tokens: every page costs some time of the interpreter."""
MOST_TOKENS, LEAST_TOKENS = 256, 16


@dataclass(slots=True)
class KVTier:
    """``pool`` is shared by caches. ``staging`` bytes may be taken for a layer's keys and values as transformers wants
    them, one behind the other, with what its own attention makes of them."""

    pool: PagePool
    staging: int
    positions: int | None = None
    """Tokens that a context may have; None: not known."""
    page_tokens: int | None = None
    """Tokens of a page; None: by their size."""
    format: KVFormat = field(default_factory=AsIs)

    def shapes(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[PageShape, PageShape]:
        """Of pages for ``keys`` and ``values`` [.., H, n, D]."""
        tokens = self.page_tokens or self._tokens(max(k.shape[-3] * k.shape[-1] * k.itemsize for k in (keys, values)))
        key, value = (PageShape(x.shape[-3], tokens, x.shape[-1], x.dtype) for x in (keys, values))
        return key, value

    def _tokens(self, each: int) -> int:
        """``each``: bytes of one token."""
        tokens = MOST_TOKENS
        while tokens > LEAST_TOKENS and tokens * each > LARGE:
            tokens //= 2
        return tokens
