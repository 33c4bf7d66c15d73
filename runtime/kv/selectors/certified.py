"""Certified attention: reads pages until the others certainly have less than epsilon of the softmax."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ....kernels.kv.certify import PageMasses, make_page_masses
from ....kernels.kv.summaries.base import Summary
from ....tiering.kv.selection.certificate import Certificate, Run, Selection, select
from ..views.page_attention import PageAttention
from ..views.selector import SelectionStats
from .by_summary import LastSelection, SummarySelector

LEAST_PAGES = 8
"""Pages with a summary below which all pages are read: there is little to save."""
GAP = 1
"""Pages between two selected ones that are read with them."""
_READ = 1e-6
"""Attention score of a page whose keys alone were read. Attention to its values adds up to 1 for each head."""


@dataclass(slots=True)
class Certificates:
    """The settings of certified attention, and counters of all layers and steps since the model was loaded."""

    epsilon: float
    kind: Summary
    selections: int = 0
    """Attention of few queries to one sequence in one layer counts once."""
    pages: int = 0
    """Pages that attention to the whole contexts would have read."""
    pages_read: int = 0
    """Pages whose keys were read."""
    weighed: int = 0
    """Pages whose values were read."""
    most_omitted: float = 0.0
    """The largest share of a head's softmax that any selection may have left out."""

    def note(self, pages: int, pages_read: int, weighed: int, omitted: float) -> None:
        """Count one selection: of ``pages``, the keys of ``pages_read`` and the values of ``weighed`` were read;
        ``omitted`` is the share of the softmax that may have been left out."""
        self.selections += 1
        self.pages += pages
        self.pages_read += pages_read
        self.weighed += weighed
        self.most_omitted = max(self.most_omitted, omitted)

    def stats(self, exact_layers: int) -> SelectionStats:
        """A snapshot; certified attention drops no page."""
        return SelectionStats(self.pages, self.pages_read, exact_layers=exact_layers)


class CertifiedSelector(SummarySelector):
    """The PageSelector of one layer: it counts in ``certificates``."""

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(certificates.kind)
        self._all = certificates

    def choose(self, attention: PageAttention, number: int) -> Sequence[int]:
        """Read keys until the certificate holds, and return the pages whose values are worth reading. All pages of a
        context with few summaries. Raises what the pool raises."""
        summaries = attention.sequence.summaries
        if summaries is None or summaries.count < LEAST_PAGES or attention.skip:
            attention.read_all()
            return range(attention.count)
        last = self._last.get(number)
        masses = make_page_masses(self._bounds(attention, summaries))
        sure = self._always(attention, summaries.count)
        self._read(attention, masses, sure)
        if attention.softmax.sinks is not None:
            masses.add_outside(attention.softmax.sinks.float().view(-1, 1, 1).expand(-1, attention.query.shape[1], -1))
        again = [page for page in self._again(attention, last) if page < summaries.count and page not in sure]
        certificate = self._select(attention, masses, again)
        keys = sorted({*sure, *certificate.pages})
        values, omitted = masses.worth_reading(self._all.epsilon)
        self._all.note(attention.count, len(keys), len(values), omitted)
        # Pages whose keys alone are read are worth their memory too.
        attention.access.pool.score([attention.sequence.keys.pages[page] for page in keys], [_READ] * len(keys))
        self._last[number] = LastSelection(attention.query, tuple(keys), tuple(values), weakref.ref(attention.sequence))
        return values

    # --- inside -----------------------------------------------------------------------------------------------------

    def _always(self, attention: PageAttention, summarised: int) -> list[int]:
        """Pages that are read in any case: those without a summary, and those with hidden tokens, of which summaries
        know nothing."""
        hidden = attention.find_hidden_pages()
        return [*(page for page in hidden if page < summarised), *range(summarised, attention.count)]

    def _again(self, attention: PageAttention, last: LastSelection | None) -> tuple[int, ...]:
        """Pages whose values counted in the last attention, if its query was like this one."""
        if last is None or last.sequence() is not attention.sequence or last.query.shape != attention.query.shape:
            return ()
        cosines = torch.nn.functional.cosine_similarity(last.query.float(), attention.query.float(), dim=-1)
        return Selection(last.values).reused(cosines.flatten().tolist())

    def _select(self, attention: PageAttention, masses: PageMasses, again: Iterable[int]) -> Certificate:
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

    def _read(self, attention: PageAttention, masses: PageMasses, pages: Sequence[int]) -> None:
        attention.read(pages)
        if pages:
            masses.add(pages, attention.collect_log_masses(pages))
