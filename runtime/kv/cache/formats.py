"""The format of pages that are no longer recent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ....kernels.kv.as_is import AsIs
from ....kernels.kv.base import KVFormat
from ....kernels.kv.quantised import is_encodable
from ....kernels.kv.registry import FORMATS
from ....tiering.kv.pages import BlockTable, Page
from ....tiering.kv.selection import kv_precision
from ....tiering.kv.selection.kv_precision import Window

AS_IS = AsIs()
MIXED = "mixed"
"""Important pages int8, others int4."""
FINE_SHARE = 0.25
"""Share of pages that are important, if formats are mixed."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """``name`` is that of a KV format, or "mixed". The first and the recent pages stay as they are."""

    name: str = AS_IS.name
    first: int = 1
    """Pages at the beginning that stay as they are."""
    recent: int = 128
    """Tokens at the end that stay as they are."""

    @property
    def keeps_all(self) -> bool:
        """Whether all pages stay as they are."""
        return self.name == AS_IS.name

    @property
    def counts_attention(self) -> bool:
        """Whether formats depend on the attention that pages get."""
        return self.name == MIXED

    def find_leaving(self, pages: Sequence[Page], number: int, length: int, tokens: int) -> list[int]:
        """The places among ``pages`` of those that are full, no longer recent, and not sealed yet. Pages have
        ``tokens`` tokens each; the first has this ``number`` in its sequence of ``length`` tokens."""
        recent = 0 if self.keeps_all else self.recent
        at = min(len(pages), (length - recent) // tokens - number)
        found = []
        while at > 0 and not pages[at - 1].sealed:
            at -= 1
            found.append(at)
        return found[::-1]

    def choose_formats(self, keys: BlockTable, leaving: Sequence[int], length: int, tokens: int) -> list[KVFormat]:
        """The format of each of the ``leaving`` pages; ``keys`` is the block table of keys of their sequence, which has
        ``length`` tokens, ``tokens`` a page."""
        if self.keeps_all:
            return [AS_IS] * len(leaving)
        if self.name != MIXED:
            return [AS_IS if keys.first + at < self.first else FORMATS[self.name] for at in leaving]
        if not leaving:
            return []
        seen = [
            kv_precision.ScoredPage(
                getattr(page.format, "name", ""), page.attention_score, max(1, length - page.index * tokens)
            )
            for page in keys.pages
        ]
        window = Window(tokens, max(0, self.first - keys.first), self.recent)
        chosen = kv_precision.assign_formats(seen, length - keys.first * tokens, window=window, fine_share=FINE_SHARE)
        return [FORMATS[chosen.get(at, AS_IS.name)] for at in leaving]


def can_encode(format: KVFormat, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether pages with these ``keys`` and ``values`` can be encoded in ``format``."""
    return format.exact or is_encodable(keys, values)
