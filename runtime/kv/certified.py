"""Certified attention: pages are read until what is left out is certainly less than epsilon of the softmax."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ...kernels.kv.certify import Masses
from ...kernels.kv.summaries.base import Summary
from ...tiering.policy.certificate import Certificate, Run, Selection, select
from .decode import Looking
from .summing import Last, Summing

LEAST_PAGES = 8
"""Summed-up pages below which all are read: there is little to save."""
GAP = 1
"""Pages between two that are read with them."""


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

    def note(self, look: Looking, certificate: Certificate, weighed: int, omitted: float) -> None:
        self.looks += 1
        self.pages += look.count
        self.looked_at += len(certificate.pages)
        self.weighed += weighed
        self.most_omitted = max(self.most_omitted, omitted)


class Certified(Summing):
    """The Chooser of one layer."""

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(certificates.kind)
        self._all = certificates

    def choose(self, look: Looking, number: int) -> Sequence[int]:
        summed = look.row.summaries
        every = range(look.count)
        if summed is None or summed.count < LEAST_PAGES or look.skip:
            look.read_all()
            return every
        sure = self._always(look, summed.count)
        masses = Masses(self._bounds(look, summed))
        self._ask(look, self._guess(look, number))
        look.read(sure)
        known = dict(zip(sure, look.log_masses(sure).unbind(-1), strict=True)) if sure else {}
        for page, mass in known.items():
            if page < summed.count:
                masses.add([page], mass[..., None])
            else:
                masses.add_outside(mass[..., None])
        if look.softmax.sinks is not None:
            masses.add_outside(look.softmax.sinks.float().view(-1, 1, 1).expand(-1, look.query.shape[1], -1))
        again = [page for page in self._again(look, number) if page < summed.count and page not in known]
        certificate = self._read(look, masses, known, again)
        pages, omitted = _lightest_left_out(known, certificate.omitted, self._all.epsilon)
        self._all.note(look, certificate, len(pages), omitted)
        self._last[number] = Last(look.query, tuple(sorted(known)), tuple(pages), weakref.ref(look.row))
        return pages

    # --- inside -----------------------------------------------------------------------------------------------------

    def _always(self, look: Looking, summed: int) -> list[int]:
        """Pages that are read in any case: not summed up, or with tokens that are hidden, which no summary knows."""
        hidden = look.hidden()
        return [page for page in range(look.count) if page >= summed or hidden[page]]

    def _guess(self, look: Looking, number: int) -> Sequence[int]:
        last = self._last.get(number)
        return () if last is None else last.keys

    def _again(self, look: Looking, number: int) -> tuple[int, ...]:
        """Pages of the last look, if it was for a query like this."""
        last = self._last.get(number)
        if last is None or last.row() is not look.row or last.query.shape != look.query.shape:
            return ()
        cosines = torch.nn.functional.cosine_similarity(last.query.float(), look.query.float(), dim=-1)
        return Selection(last.keys).reused(cosines.flatten().tolist())

    def _read(self, look: Looking, masses: Masses, known: dict[int, torch.Tensor], again: Iterable[int]) -> Certificate:
        """Read keys until the certificate holds; ``known`` gets the masses of pages."""
        longest = max(1, look.layer.tier.pool.most // look.row.keys.pages[0].size)
        steps = select(masses, epsilon=self._all.epsilon, gap=GAP, longest=longest, at_first=again)
        while True:
            try:
                batch: list[Run] = next(steps)
            except StopIteration as stop:
                certificate: Certificate = stop.value
                return certificate
            pages = [page for run in batch for page in run.pages]
            new = [page for page in pages if page not in known]
            self._ask(look, new)
            look.read(new)
            known.update(zip(new, look.log_masses(new).unbind(-1), strict=True))
            masses.add(pages, torch.stack([known[page] for page in pages], -1))


def _lightest_left_out(
    known: dict[int, torch.Tensor], omitted: Sequence[float], epsilon: float
) -> tuple[list[int], float]:
    """Of pages with ``known`` log-masses [Hq, R], those whose values are worth reading, ascending: the lightest are
    left out too, as far as no head omits more than ``epsilon``; and what a head then omits at most."""
    pages = sorted(known)
    masses = torch.stack([known[page] for page in pages], -1).double().flatten(0, 1)
    lost = torch.tensor(omitted, dtype=torch.float64)
    share = (masses - masses.logsumexp(-1, keepdim=True)).exp() * (1 - lost[:, None])
    order = share.amax(0).argsort()
    total = lost + share[:, order].cumsum(-1).T  # [pages, heads]
    fits = (total <= epsilon).all(-1)
    spared = int(fits.sum()) if bool(torch.isfinite(share).all()) else 0
    spared = min(spared, len(pages) - 1)
    most = float((total[spared - 1] if spared else lost).max())
    left = set(order[:spared].tolist())
    return [page for place, page in enumerate(pages) if place not in left], most
