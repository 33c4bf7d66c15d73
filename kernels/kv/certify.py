"""Masses of the pages of one layer for certified attention: bounds, exact masses of read pages, the omitted share.

``tiering/kv/selection/certificate.py`` decides with them. Everything is in float64: the masses of thousands of pages
are added up, and some are many orders of magnitude smaller than others.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..native import COMPILED, KERNELS
from .summaries.base import Bounds

_FEW = 4096
"""Bounds below which a second thread takes more time than it saves."""


class PageMasses:
    """Masses of n pages, for all query rows of a layer: exact for pages that were read, bounded for the others.

    Masses are kept as shares of the greatest bound of their row. A mass that is too small for that counts as nothing if
    its page was read, and does not matter if it was not.
    """

    def __init__(self, bounds: Bounds) -> None:
        """``bounds`` [Hq, R, n], float32, of pages none of which was read yet."""
        lower, upper = (numbers.flatten(0, 1).contiguous() for numbers in bounds)
        rows, self._count = upper.shape
        self._left = np.ones(self._count, dtype=bool)
        self._read = np.zeros(rows)  # this array and the one above stay where they are
        self._decode_pages: list[int] = []
        self._parts: list[NDArray[np.float64]] = []  # of those pages, [rows, some] each
        self._bound(lower, upper)

    def add(self, pages: Sequence[int], log_masses: torch.Tensor) -> None:
        """Add ``pages``, which were read: ``log_masses`` [Hq, R, len(pages)] are the logarithms of their sums of
        exp(score). Pages with numbers from n on have no bounds."""
        self._parts.append(self._add(log_masses))
        self._decode_pages += pages
        self._left[[page for page in pages if page < self._count]] = False

    def add_outside(self, log_masses: torch.Tensor) -> None:
        """As ``add``, for masses that belong to no page."""
        self._add(log_masses)

    def omitted(self) -> list[float]:
        """For each row, the largest share of the softmax that the pages not read can have, 0 to 1."""
        if not self._left.any():
            return [0.0] * len(self._read)
        unread = self._upper[:, self._left].sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = unread / (unread + self._read)
        # No tokens at all, or masses that are not finite: an infinite one may hide anything.
        known = np.isfinite(self._read) & (self._read > 0) & ~np.isnan(share)
        found: list[float] = np.where(known, share, 1.0).tolist()
        return found

    def needed(self, epsilon: float, *, hopeful: bool) -> list[int]:
        """Pages to read next, in order, after which no row has more than ``epsilon`` omitted. Certainly, as every page
        has at least its lower bound; or, if ``hopeful``, where each page has its upper bound. All the hopeful ones are
        needed, as long as pages are read in the order of their upper bounds, but more may be needed after them."""
        left = self._left.nonzero()[0]
        upper = self._upper[:, left]
        order = np.argsort(-upper, axis=-1, kind="stable")
        upper = np.take_along_axis(upper, order, -1)
        own = upper if hopeful else np.take_along_axis(self._lower[:, left], order, -1)
        own = np.where(np.isfinite(own), own, 0.0)
        # Column k: after the first k pages are read. Sums begin with the smallest, so that none is lost.
        unread = np.zeros((len(upper), len(left) + 1))
        unread[:, :-1] = np.cumsum(upper[:, ::-1], -1)[:, ::-1]
        known = np.empty_like(unread)
        known[:, 0] = self._read
        known[:, 1:] = self._read[:, None] + np.cumsum(own, -1)
        with np.errstate(invalid="ignore"):
            enough = (unread * (1 - epsilon) <= known * epsilon) & (known > 0) & np.isfinite(known)
        enough[:, -1] = True
        count = enough.argmax(-1)
        chosen = np.zeros(len(left), dtype=bool)
        chosen[order[np.arange(len(left)) < count[:, None]]] = True
        found: list[int] = left[chosen].tolist()
        return found

    def worth_reading(self, epsilon: float) -> tuple[list[int], float]:
        """The read pages whose values are worth reading, in order, and the largest share that a row then omits. The
        lightest pages are left out, as long as no row omits more than ``epsilon``."""
        lost = np.array(self.omitted())
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.concatenate(self._parts, -1) * ((1 - lost) / self._read)[:, None]
        order = share.max(0).argsort(kind="stable")
        total = lost[:, None] + share[:, order].cumsum(-1)
        fits = (total <= epsilon).all(0)
        spared = min(int(fits.sum()), len(order) - 1) if np.isfinite(share).all() else 0
        most = float((total[:, spared - 1] if spared else lost).max())
        return sorted(self._decode_pages[place] for place in order[spared:].tolist()), most

    # --- inside -----------------------------------------------------------------------------------------------------

    def _bound(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        """Compute shares of each row's unit from logarithms [rows, n]."""
        bounds = [numbers.numpy().astype(np.float64) for numbers in (lower, upper)]
        self._unit = np.where(np.isfinite(bounds[1]), bounds[1], -np.inf).max(-1, initial=-np.inf, keepdims=True)
        self._unit[~np.isfinite(self._unit)] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            self._lower, self._upper = (np.exp(numbers - self._unit) for numbers in bounds)

    def _add(self, log_masses: torch.Tensor) -> NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):
            parts: NDArray[np.float64] = np.exp(log_masses.flatten(0, 1).numpy() - self._unit)
            self._read += parts.sum(-1)
        return parts


class CompiledPageMasses(PageMasses):
    """The same, computed by certify.c, which orders no more pages than it has to."""

    def omitted(self) -> list[float]:
        """As in PageMasses."""
        assert COMPILED is not None
        COMPILED.penstock_omitted(
            self._upper_at, self._left_at, self._rows, self._count, self._read_at, self._omitted_at
        )
        found: list[float] = self._omitted.tolist()
        return found

    def needed(self, epsilon: float, *, hopeful: bool) -> list[int]:
        """As in PageMasses."""
        assert COMPILED is not None
        room = torch.empty(self._rows, self._count, dtype=torch.int32)
        wanted = torch.empty(self._count, dtype=torch.bool)
        COMPILED.penstock_needed(
            self._upper_at,
            None if hopeful else self._logs.data_ptr(),
            self._unit_at,
            self._left_at,
            self._rows,
            self._count,
            self._read_at,
            epsilon,
            room.data_ptr(),
            wanted.data_ptr(),
            self._threads,
        )
        found: list[int] = wanted.numpy().nonzero()[0].tolist()
        return found

    def _bound(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        assert COMPILED is not None
        self._logs, self._rows = lower, len(upper)
        self._threads = torch.get_num_threads() if upper.numel() > _FEW else 1
        self._unit, self._upper, self._omitted = np.empty((self._rows, 1)), np.empty(upper.shape), np.empty(self._rows)
        every = (self._unit, self._upper, self._omitted, self._read, self._left)
        self._unit_at, self._upper_at, self._omitted_at, self._read_at, self._left_at = (x.ctypes.data for x in every)
        COMPILED.penstock_shares(
            upper.data_ptr(), self._rows, self._count, self._unit_at, self._upper_at, self._threads
        )


def make_page_masses(bounds: Bounds) -> PageMasses:
    """Masses for pages with ``bounds`` [Hq, R, n], by the fastest implementation there is."""
    return PageMasses(bounds) if COMPILED is None else CompiledPageMasses(bounds)


def sum_page_masses(scores: torch.Tensor, tokens: int) -> torch.Tensor:
    """The logarithms of the sums of exp(score) over pages of ``tokens`` tokens: float32 [Hq, R, pages], of float32
    ``scores`` [Hq, R, T], whose rows may lie apart. The last page may have fewer tokens."""
    heads, rows, there = scores.shape
    pages = -(-there // tokens)
    if KERNELS is None or scores.stride(2) != 1 or (rows > 1 and scores.stride(0) != rows * scores.stride(1)):
        padded = torch.nn.functional.pad(scores, (0, pages * tokens - there), value=-torch.inf)
        found: torch.Tensor = padded.view(heads, rows, pages, tokens).logsumexp(-1)
        return found
    logs = torch.empty(heads, rows, pages)
    missing = pages * tokens - there
    stride = scores.stride(0) if rows == 1 else scores.stride(1)
    KERNELS.page_masses(scores.data_ptr(), heads * rows, stride, pages, tokens, missing, logs.data_ptr())
    return logs
