"""Certified attention: pages are read until what is left out is certainly less than epsilon of the softmax."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ....kernels.kv.certify import Masses, masses_of
from ....kernels.kv.summaries.base import Summary
from ....tiering.kv.selection.certificate import Certificate, Run, Selection, select
from ..views.page_attention import PageAttention
from ..views.selector import SelectionStats
from .by_summary import Last, SummarySelector

LEAST_PAGES = 8
"""PageSummaries-up pages below which all are read: there is little to save."""
GAP = 1
"""Pages between two that are read with them."""
_LOOKED_AT = 1e-6
"""Heat of a page for its bound alone; attention adds what it gets, of 1 for each head."""


@dataclass(slots=True)
class Certificates:
    """Of all layers and steps since the model was loaded."""

    epsilon: float
    kind: Summary
    looks: int = 0
    pages: int = 0
    """Pages that there were."""
    looked_at: int = 0
    """Pages whose keys were read."""
    weighed: int = 0
    """Pages whose values were read."""
    most_omitted: float = 0.0
    """The largest share of a head's softmax that may have been left out, of any attention."""

    def note(self, pages: int, looked_at: int, weighed: int, omitted: float) -> None:
        self.looks += 1
        self.pages += pages
        self.looked_at += looked_at
        self.weighed += weighed
        self.most_omitted = max(self.most_omitted, omitted)

    def stats(self, exact_layers: int) -> SelectionStats:
        """A snapshot; certified attention drops no page."""
        return SelectionStats(self.pages, self.looked_at, exact_layers=exact_layers)


class CertifiedSelector(SummarySelector):
    """The PageSelector of one layer."""

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(certificates.kind)
        self._all = certificates

    def choose(self, attention: PageAttention, number: int) -> Sequence[int]:
        summed = attention.sequence.summaries
        if summed is None or summed.count < LEAST_PAGES or attention.skip:
            attention.read_all()
            return range(attention.count)
        last = self._last.get(number)
        masses = masses_of(self._bounds(attention, summed))
        sure = self._always(attention, summed.count)
        self._read(attention, masses, sure)
        if attention.softmax.sinks is not None:
            masses.add_outside(attention.softmax.sinks.float().view(-1, 1, 1).expand(-1, attention.query.shape[1], -1))
        again = [page for page in self._again(attention, last) if page < summed.count and page not in sure]
        certificate = self._select(attention, masses, again)
        keys = sorted({*sure, *certificate.pages})
        values, omitted = masses.worth_reading(self._all.epsilon)
        self._all.note(attention.count, len(keys), len(values), omitted)
        for page in keys:  # those that it takes keys of, but no values, are worth their memory too
            attention.sequence.keys.pages[page].attention_score += _LOOKED_AT
        self._last[number] = Last(attention.query, tuple(keys), tuple(values), weakref.ref(attention.sequence))
        return values

    # --- inside -----------------------------------------------------------------------------------------------------

    def _always(self, attention: PageAttention, summed: int) -> list[int]:
        """Pages that are read in any case: not summed up, or with tokens that are hidden, which no summary knows."""
        hidden = attention.hidden_pages()
        return [*(page for page in hidden if page < summed), *range(summed, attention.count)]

    def _again(self, attention: PageAttention, last: Last | None) -> tuple[int, ...]:
        """Pages whose values counted in the last attention, if that was for a query like this."""
        if last is None or last.sequence() is not attention.sequence or last.query.shape != attention.query.shape:
            return ()
        cosines = torch.nn.functional.cosine_similarity(last.query.float(), attention.query.float(), dim=-1)
        return Selection(last.values).reused(cosines.flatten().tolist())

    def _select(self, attention: PageAttention, masses: Masses, again: Iterable[int]) -> Certificate:
        """Read keys until the certificate holds."""
        longest = max(1, attention.access.pool.most // attention.sequence.keys.pages[0].size)
        steps = select(masses, epsilon=self._all.epsilon, gap=GAP, longest=longest, at_first=again)
        while True:
            try:
                batch: list[Run] = next(steps)
            except StopIteration as stop:
                certificate: Certificate = stop.value
                return certificate
            pages = [page for run in batch for page in run.pages]
            self._read_ahead(attention, pages)
            self._read(attention, masses, pages)

    def _read(self, attention: PageAttention, masses: Masses, pages: Sequence[int]) -> None:
        attention.read(pages)
        if pages:
            masses.add(pages, attention.log_masses(pages))
