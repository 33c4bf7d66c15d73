"""Certified attention: pages are read until what is left out is certainly less than epsilon of the softmax."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ....kernels.kv.certify import Masses, masses_of
from ....kernels.kv.summaries.base import Summary
from ....tiering.kv.selection.certificate import Certificate, Run, Selection, select
from ..attention.few_rows import PageAttention
from .by_summary import Last, Summing

LEAST_PAGES = 8
"""Summed-up pages below which all are read: there is little to save."""
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
    """The largest share of a head's softmax that may have been left out, of any look."""

    def note(self, pages: int, looked_at: int, weighed: int, omitted: float) -> None:
        self.looks += 1
        self.pages += pages
        self.looked_at += looked_at
        self.weighed += weighed
        self.most_omitted = max(self.most_omitted, omitted)


class Certified(Summing):
    """The PageSelector of one layer."""

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(certificates.kind)
        self._all = certificates

    def choose(self, look: PageAttention, number: int) -> Sequence[int]:
        summed = look.row.summaries
        if summed is None or summed.count < LEAST_PAGES or look.skip:
            look.read_all()
            return range(look.count)
        last = self._last.get(number)
        masses = masses_of(self._bounds(look, summed))
        sure = self._always(look, summed.count)
        self._read(look, masses, sure)
        if look.softmax.sinks is not None:
            masses.add_outside(look.softmax.sinks.float().view(-1, 1, 1).expand(-1, look.query.shape[1], -1))
        again = [page for page in self._again(look, last) if page < summed.count and page not in sure]
        certificate = self._select(look, masses, again)
        keys = sorted({*sure, *certificate.pages})
        values, omitted = masses.worth_reading(self._all.epsilon)
        self._all.note(look.count, len(keys), len(values), omitted)
        # Those that it takes keys of, but no values, are worth their memory too.
        look.layer.tier.pool.score([look.row.keys.pages[page] for page in keys], [_LOOKED_AT] * len(keys))
        self._last[number] = Last(look.query, tuple(keys), tuple(values), weakref.ref(look.row))
        return values

    # --- inside -----------------------------------------------------------------------------------------------------

    def _always(self, look: PageAttention, summed: int) -> list[int]:
        """Pages that are read in any case: not summed up, or with tokens that are hidden, which no summary knows."""
        hidden = look.hidden()
        return [*(page for page in hidden if page < summed), *range(summed, look.count)]

    def _again(self, look: PageAttention, last: Last | None) -> tuple[int, ...]:
        """Pages whose values counted in the last look, if that was for a query like this."""
        if last is None or last.row() is not look.row or last.query.shape != look.query.shape:
            return ()
        cosines = torch.nn.functional.cosine_similarity(last.query.float(), look.query.float(), dim=-1)
        return Selection(last.values).reused(cosines.flatten().tolist())

    def _select(self, look: PageAttention, masses: Masses, again: Iterable[int]) -> Certificate:
        """Read keys until the certificate holds."""
        longest = max(1, look.layer.tier.pool.most // look.row.keys.pages[0].size)
        steps = select(masses, epsilon=self._all.epsilon, gap=GAP, longest=longest, at_first=again)
        while True:
            try:
                batch: list[Run] = next(steps)
            except StopIteration as stop:
                certificate: Certificate = stop.value
                return certificate
            pages = [page for run in batch for page in run.pages]
            self._ask(look, pages)
            self._read(look, masses, pages)

    def _read(self, look: PageAttention, masses: Masses, pages: Sequence[int]) -> None:
        look.read(pages)
        if pages:
            masses.add(pages, look.log_masses(pages))
