"""Reads the pages of one layer for a model that computes on a device: from the copies there, the others from below."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch

from ....tiering.kv.device_pages import Pair
from ....tiering.kv.pages import Page
from ..pages.device_pages import UpperTier
from ..pages.pool import PagePool
from .page_access import PageAccess
from .sequence import SequencePages

KeysAndValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values [H, n, D]."""


class DevicePageAccess(PageAccess):
    """As PageAccess, for pages some of which have a copy in ``device_pages``."""

    def __init__(self, pool: PagePool, read_on: Callable[[], None], device_pages: UpperTier) -> None:
        super().__init__(pool, read_on)
        self.device_pages = self._device = device_pages

    def gather(self, sequence: SequencePages, start: int, count: int) -> KeysAndValues:
        """As ``copy``, on the device. Raises Closed, ReadError too, where copies to the device fail."""
        device = self._device
        if not count:
            keys, values = self.copy(sequence, start, 0)
            return keys.to(device.compute), values.to(device.compute)
        tokens, first = self.tokens, sequence.keys.first
        pages = sequence.keys.pages[start // tokens - first : -(-(start + count) // tokens) - first]
        pairs = device.look(pages)
        try:
            parts = [*self._parts(sequence, start, start + count, pages, {pair.keys: pair for pair in pairs})]
            keys, values = (torch.cat([part[side] for part in parts], 1) for side in (0, 1))
        finally:
            device.looked(pairs)
        return keys, values

    def _parts(
        self, sequence: SequencePages, start: int, end: int, pages: Sequence[Page], copies: dict[Page, Pair]
    ) -> Iterator[KeysAndValues]:
        for on_device, group in groupby(pages, key=copies.__contains__):
            some = [*group]
            spans = [clip_span(page, self.tokens, start, end) for page in some]
            if not on_device:
                first = spans[0][0]
                yield self._device.up(*self.copy(sequence, first, spans[-1][1] - first))
                continue
            for page, (first, last) in zip(some, spans, strict=True):
                own = page.index * self.tokens
                keys, values = (
                    self._device.numbers(copies[page], side, shape)[:, first - own : last - own]
                    for side, shape in enumerate(self.shapes)
                )
                yield keys, values


def clip_span(page: Page, tokens: int, start: int, end: int) -> tuple[int, int]:
    """The tokens from number ``start`` to ``end`` that are in ``page``, of ``tokens`` tokens: where they begin and
    end."""
    return max(start, page.index * tokens), min(end, (page.index + 1) * tokens)
