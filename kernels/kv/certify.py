"""What certified attention knows of one layer's pages: bounds, what was read, and what may be left out.

The numbers behind ``tiering.policy.certificate``, which decides. Everything is in float64: it adds up the masses of
thousands of pages, of which some are many orders of magnitude smaller than others.
"""

from collections.abc import Sequence

import numpy as np
import torch

from .summaries.base import Bounds


class Masses:
    """Of n pages and all query rows of a layer. The masses of pages that were read are exact, of others bounded.

    Masses are kept as shares of the greatest bound of their row. What is too small for that counts as nothing where it
    was read, and is too small to matter where it was not.
    """

    def __init__(self, bounds: Bounds) -> None:
        """``bounds`` [Hq, R, n] of pages none of which was read yet."""
        lower, upper = (numbers.flatten(0, 1).numpy().astype(np.float64) for numbers in bounds)
        self._unit = np.where(np.isfinite(upper), upper, -np.inf).max(-1, initial=-np.inf, keepdims=True)
        self._unit[~np.isfinite(self._unit)] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            self._upper, self._lower = np.exp(upper - self._unit), np.exp(lower - self._unit)
        self._left = np.ones(upper.shape[1], dtype=bool)
        self._read = np.zeros(len(upper))

    def add(self, pages: Sequence[int], log_masses: torch.Tensor) -> None:
        """``pages`` were read: log_masses [Hq, R, len(pages)] are the logarithms of their sums of exp(score)."""
        self.add_outside(log_masses)
        self._left[list(pages)] = False

    def add_outside(self, log_masses: torch.Tensor) -> None:
        """The same of tokens that belong to none of the pages: the last ones, of a page that is not full yet."""
        masses = log_masses.flatten(0, 1).numpy().astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            self._read = self._read + np.exp(masses - self._unit).sum(-1)

    def omitted(self) -> list[float]:
        """For each row, the most of the whole softmax that the pages which were not read can have, 0 to 1."""
        if not self._left.any():
            return [0.0] * len(self._read)
        unread = self._upper[:, self._left].sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = unread / (unread + self._read)
        # No tokens at all, or masses that are no numbers: an infinite one may hide anything.
        known = np.isfinite(self._read) & (self._read > 0) & ~np.isnan(share)
        found: list[float] = np.where(known, share, 1.0).tolist()
        return found

    def needed(self, epsilon: float, *, hopeful: bool) -> list[int]:
        """Pages to read next, in order, with which no row has more than ``epsilon`` omitted: certainly, as every page
        has at least its lower bound; or ``hopeful``, if each has its upper bound. None of the hopeful ones can be
        spared, as long as pages are read in the order of their upper bounds, but more may be needed after them."""
        left = self._left.nonzero()[0]
        upper = self._upper[:, left]
        order = np.argsort(-upper, axis=-1, kind="stable")
        upper = np.take_along_axis(upper, order, -1)
        own = upper if hopeful else np.take_along_axis(self._lower[:, left], order, -1)
        own = np.where(np.isfinite(own), own, 0.0)
        # Column k: when the first k pages are read. Sums begin with the least, so that none of it is lost.
        unread = np.zeros((len(upper), len(left) + 1))
        unread[:, :-1] = np.cumsum(upper[:, ::-1], -1)[:, ::-1]
        known = np.empty_like(unread)
        known[:, 0] = self._read
        known[:, 1:] = self._read[:, None] + np.cumsum(own, -1)
        with np.errstate(invalid="ignore"):
            enough = (unread * (1 - epsilon) <= known * epsilon) & (known > 0)
        enough[:, -1] = True
        count = enough.argmax(-1)
        chosen = np.zeros(len(left), dtype=bool)
        chosen[order[np.arange(len(left)) < count[:, None]]] = True
        found: list[int] = left[chosen].tolist()
        return found
