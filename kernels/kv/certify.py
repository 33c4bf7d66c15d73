"""What certified attention knows of one layer's pages: bounds, what was read, and what may be left out.

The numbers behind ``tiering.policy.certificate``, which decides. Everything is in float64: it adds up the masses of
thousands of pages, of which some are many orders of magnitude smaller than others.
"""

import math
from collections.abc import Sequence

import torch

from .summaries.base import Bounds


class Masses:
    """Of n pages and all query rows of a layer. The masses of pages that were read are exact, of others bounded."""

    def __init__(self, bounds: Bounds) -> None:
        """``bounds`` [Hq, R, n] of pages none of which was read yet."""
        self._upper = bounds.upper.double().flatten(0, 1)
        self._lower = bounds.lower.double().flatten(0, 1)
        self._left = torch.ones(self._upper.shape[1], dtype=torch.bool)
        self._read = self._upper.new_full((len(self._upper),), -torch.inf)

    def add(self, pages: Sequence[int], log_masses: torch.Tensor) -> None:
        """``pages`` were read: log_masses [Hq, R, len(pages)] are the logarithms of their sums of exp(score)."""
        self.add_outside(log_masses)
        self._left[list(pages)] = False

    def add_outside(self, log_masses: torch.Tensor) -> None:
        """The same of tokens that belong to none of the pages: the last ones, of a page that is not full yet."""
        masses = log_masses.double().flatten(0, 1)
        self._read = torch.logaddexp(self._read, masses.logsumexp(-1))

    def omitted(self) -> list[float]:
        """For each row, the most of the whole softmax that the pages which were not read can have, 0 to 1."""
        unread = self._upper[:, self._left].logsumexp(-1)
        share = (unread - torch.logaddexp(unread, self._read)).exp()
        # No tokens at all, or masses that are no numbers: an infinite one may hide anything.
        share = torch.where(torch.isfinite(self._read) & ~torch.isnan(share), share, 1.0)
        if not bool(self._left.any()):
            share = torch.zeros_like(share)
        return [float(each) for each in share]

    def needed(self, epsilon: float, *, hopeful: bool) -> list[int]:
        """Pages to read next, in order, with which no row has more than ``epsilon`` omitted: certainly, as every page
        has at least its lower bound; or ``hopeful``, if each has its upper bound. None of the hopeful ones can be
        spared, as long as pages are read in the order of their upper bounds, but more may be needed after them."""
        left = self._left.nonzero()[:, 0]
        upper, lower = self._upper[:, left], self._lower[:, left]
        upper, order = upper.sort(dim=-1, descending=True)
        own = upper if hopeful else lower.gather(-1, order)
        own = torch.where(own.isfinite(), own, -torch.inf)
        rows = len(upper)
        none = upper.new_full((rows, 1), -torch.inf)
        # Column k: when the first k pages are read.
        unread = torch.cat([upper.flip(-1).logcumsumexp(-1).flip(-1), none], 1)
        known = torch.logaddexp(torch.cat([none, own.logcumsumexp(-1)], 1), self._read[:, None])
        enough = unread <= known + math.log(epsilon) - math.log1p(-epsilon)
        enough[:, -1] = True
        count = enough.to(torch.uint8).argmax(-1)
        chosen = torch.zeros(len(left), dtype=torch.bool)
        chosen[order[torch.arange(len(left)) < count[:, None]]] = True
        found: list[int] = left[chosen].tolist()
        return found
