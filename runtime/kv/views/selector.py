"""The interface of a page selector: it selects the pages of a layer that attention reads."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ....kernels.kv.base import PageShape
from ....tiering.kv.pages import Page
from .page_access import PageAccess
from .page_attention import PageAttention
from .sequence import SequencePages


class AttendedLayer(Protocol):
    """A layer of a paged cache, as attention and selectors see it."""

    access: PageAccess
    selector: "PageSelector | None"
    """Which pages the attention of few queries reads; None: all."""

    @property
    def sequences(self) -> list[SequencePages]:
        """The pages of each sequence of the batch."""
        ...

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        ...

    @property
    def siblings(self) -> "Sequence[AttendedLayer]":
        """All layers of the cache, this one too, in their order."""
        ...

    @property
    def staging(self) -> int:
        """Bytes that keys and values may take in one piece, with what eager attention makes of them."""
        ...

    @property
    def counts_attention(self) -> bool:
        """Whether pages need an attention score."""
        ...

    def read_all_pages(self) -> None:
        """Select by summaries no more: attention reads all pages from now on."""
        ...

    def drop_pages(self, sequence: SequencePages, numbers: Iterable[int]) -> list[int]:
        """Drop the pages with these numbers from ``sequence``, for good; the numbers of those that were not on their
        way out already."""
        ...


class PageSelector(Protocol):
    """Selects pages for one layer of one cache. Sequences have numbers, their places in the batch; pages have numbers
    among the visible ones of their sequence."""

    drops: bool
    """Whether it drops pages that later queries could see."""

    def summary_bytes(self, shape: PageShape) -> int:
        """Bytes of memory for the summary of a page of keys of this ``shape``."""
        ...

    def count_watched(self, rows: int) -> int:
        """Of a prompt of ``rows`` tokens, the number of last queries whose attention is to be counted."""
        ...

    def on_prefill(
        self, layer: AttendedLayer, number: int, queries: int, masses: torch.Tensor | None, bias: torch.Tensor | None
    ) -> None:
        """The attention of many ``queries`` of sequence ``number`` to all pages was computed. ``masses`` [T] is what
        the watched queries gave to its tokens, ``bias`` [T] the mask of the last one, None if it sees all tokens."""
        ...

    def choose(self, attention: PageAttention, number: int) -> Sequence[int]:
        """Read keys of sequence ``number``, and return the pages whose values count, ascending; their keys were
        read."""
        ...

    def on_attention(
        self,
        layer: AttendedLayer,
        number: int,
        attention: PageAttention,
        pages: Sequence[int],
        probabilities: torch.Tensor,
    ) -> None:
        """The softmax over ``pages`` of sequence ``number`` gave ``probabilities`` [Hq, R, n]."""
        ...

    def on_append(self, layer: AttendedLayer, sequence: SequencePages) -> None:
        """Tokens were added to ``sequence``."""
        ...

    def expect(self, number: int, sequence: SequencePages) -> Iterable[Page]:
        """Pages that the next attention to ``sequence``, which has this ``number``, will probably read."""
        ...


@dataclass(frozen=True, slots=True)
class SelectionStats:
    """A snapshot. Selectors had ``pages`` to select from and read ``pages_read`` of them. ``dropped`` ones are gone,
    which had ``dropped_share`` of the attention that was counted. ``exact_layers`` read all pages all the same."""

    pages: int = 0
    pages_read: int = 0
    dropped: int = 0
    dropped_share: float = 0.0
    exact_layers: int = 0


class SelectionCounters(Protocol):
    """Counts what the selectors of a loaded model do."""

    def stats(self, exact_layers: int) -> SelectionStats:
        """A snapshot."""
        ...


@dataclass(frozen=True, slots=True)
class PageSelection:
    """How the layers of a loaded model select pages: ``new_selector`` makes the selector of one layer, and all of them
    count in ``counters``."""

    new_selector: Callable[[], PageSelector]
    counters: SelectionCounters
