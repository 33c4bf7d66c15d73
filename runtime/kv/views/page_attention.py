"""Attention of a few queries to the pages of one sequence, where the pages are: scores, masses, weighted values.

It computes what eager attention computes, with the same roundings; only the order of float32 sums differs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from ....kernels.kv.certify import sum_page_masses
from ....tiering.kv.pages import BlockTable, Page
from .page_access import PageAccess
from .sequence import SequencePages
from .softmax import Softmax


class PageAttention:
    """Attention of ``query`` [Hq, R, D] to T tokens of ``sequence``, those from number ``start`` on, in its pages.

    Pages are numbered from the first one with a visible token on. ``bias`` [1 or Hq, R, T] is added to the scores.
    Methods that read raise what the pool raises.
    """

    def __init__(
        self,
        access: PageAccess,
        sequence: SequencePages,
        start: int,
        count: int,
        query: torch.Tensor,
        softmax: Softmax,
        bias: torch.Tensor | None,
    ) -> None:
        """``count`` is T."""
        self.access, self.sequence, self.query, self.softmax = access, sequence, query, softmax
        tokens = access.tokens
        self._first = start // tokens - sequence.keys.first  # among the pages of the block table
        self.skip = start % tokens
        """Tokens of the first page that are not visible."""
        self.end = self.skip + count
        """Tokens from the first page's beginning to the last visible token."""
        self.count = -(-self.end // tokens)
        """Pages."""
        self.tokens = tokens
        self._bias = bias
        self._raw = torch.empty(0)
        self._whole = False  # the scores of all pages are in _raw, in their order
        self._in_order = False  # pages are read in the order of their tokens, not as a selector asks for them
        self._place: dict[int, int] = {}  # otherwise: the place in _raw of each page that was read

    @property
    def last_bias(self) -> torch.Tensor | None:
        """The bias of the last query, [T]; None if it sees all tokens."""
        return None if self._bias is None else self._bias[0, -1]

    def read_all(self) -> None:
        """Compute the scores of all pages, as they come into memory."""
        self._raw = torch.empty(*self.query.shape[:2], self.end, dtype=torch.float32)
        self._whole = True
        self._read(range(self.count))

    @property
    def keys(self) -> list[Page]:
        """All pages of keys."""
        return self.sequence.keys.pages[self._first : self._first + self.count]

    def read_here(self, pages: Sequence[int]) -> None:
        """Compute the scores of ``pages`` alone, ascending, as they come into memory."""
        self._raw = torch.empty(*self.query.shape[:2], len(pages) * self.tokens, dtype=torch.float32)
        self._place = {page: at for at, page in enumerate(pages)}
        self._read(pages)

    def _read(self, pages: Sequence[int]) -> None:
        self._in_order = True
        address, shape = self.access.pool.address, self.access.shapes[0]
        for at, run in self.access.hold_runs(self.sequence.keys, [self._first + page for page in pages]):
            format: Any = run[0].format
            place = self._column(at) * self.tokens
            format.scores(self.query, [*map(address, run)], shape, self.softmax.scaling, self._raw, place)

    def read(self, pages: Sequence[int]) -> None:
        """Compute the scores of ``pages`` too, besides those that were read before."""
        if not self._place:
            self._raw = torch.empty(*self.query.shape[:2], self.count * self.tokens, dtype=torch.float32)
        address, shape = self.access.pool.address, self.access.shapes[0]
        before = len(self._place)
        for at, run in self.access.hold_batches(self.sequence.keys, [self._first + page for page in pages]):
            format: Any = run[0].format
            place = (before + at) * self.tokens
            format.scores(self.query, [*map(address, run)], shape, self.softmax.scaling, self._raw, place)
        self._place.update({page: before + at for at, page in enumerate(pages)})

    def collect_scores(self, pages: Sequence[int]) -> torch.Tensor:
        """The scores of the visible tokens of ``pages``, ascending and read: [Hq, R, n], in the query's dtype, as eager
        attention has them before the softmax."""
        if self._whole:
            raw, bias = self._raw[..., self.skip :], self._bias
        else:
            before, after = self._unseen(pages)
            raw = self._paged_raw(pages).flatten(-2)
            raw = raw[..., before : raw.shape[-1] - after]
            bias = None if self._bias is None else self._bias[..., self._tokens_of(pages)]
        scores = self.softmax.cap(raw.to(self.query.dtype))
        return scores if bias is None else scores + bias

    def collect_log_masses(self, pages: Sequence[int]) -> torch.Tensor:
        """The logarithms of the sums of exp(score) of ``pages``, ascending and read: float32 [Hq, R, len(pages)]."""
        scores, skip = self.collect_scores(pages), self.skip * (pages[0] == 0)
        return sum_page_masses(
            functional.pad(scores.float(), (skip, 0), value=-torch.inf) if skip else scores.float(), self.tokens
        )

    def find_hidden_pages(self) -> list[int]:
        """The pages with tokens whose bias is not 0."""
        if self._bias is None:
            return []
        changed = (self._bias != 0).flatten(0, -2).any(0)
        padded = functional.pad(changed, (self.skip, -self.end % self.tokens))
        found: list[int] = padded.view(-1, self.tokens).any(-1).nonzero().flatten().tolist()
        return found

    def sum_by_page(self, pages: Sequence[int], probabilities: torch.Tensor) -> list[float]:
        """The sum of ``probabilities`` [Hq, R, n] over the tokens of each of ``pages``, ascending, over rows and
        heads."""
        skip = self.skip if pages and pages[0] == 0 else 0
        share = functional.pad(probabilities.float().sum((0, 1)), (skip, 0))
        share = functional.pad(share, (0, -len(share) % self.tokens))
        found: list[float] = share.view(-1, self.tokens).sum(-1).tolist()
        return found

    def count_attention(self, probabilities: torch.Tensor) -> None:
        """Add what each page got of ``probabilities`` [Hq, R, T] to its attention score."""
        self.access.pool.score(self.keys, self.sum_by_page(range(self.count), probabilities))

    def spread(self, pages: Sequence[int], probabilities: torch.Tensor, weights: torch.Tensor) -> None:
        """Put the ``probabilities`` [Hq, R, n] of the visible tokens of ``pages``, ascending and read, where they
        belong in ``weights`` [Hq, R, T]."""
        if self._whole:
            weights.copy_(probabilities)
        else:
            weights[..., self._tokens_of(pages)] = probabilities

    def weigh(self, pages: Sequence[int], probabilities: torch.Tensor) -> torch.Tensor:
        """[Hq, R, Dv]: values of ``pages``, ascending, times ``probabilities`` [Hq, R, n] of their visible tokens."""
        return self.weigh_wide(pages, probabilities).to(self.query.dtype)

    def weigh_wide(self, pages: Sequence[int], probabilities: torch.Tensor) -> torch.Tensor:
        """As ``weigh``, in float32: not rounded to the query's dtype."""
        skip = self.skip if pages and pages[0] == 0 else 0
        weights = functional.pad(probabilities, (skip, 0)) if skip else probabilities.contiguous()
        table, pool, shape = self.sequence.values, self.access.pool, self.access.shapes[1]
        out = torch.zeros(*self.query.shape[:2], shape.dim, dtype=torch.float32)
        wanted = [self._first + page for page in pages]
        for at, run in self._runs(table, wanted):
            format: Any = run[0].format
            format.weigh(weights, at * self.tokens, [*map(pool.address, run)], shape, out)
        return out

    def _runs(self, table: BlockTable, wanted: Sequence[int]) -> Iterator[tuple[int, list[Page]]]:
        # The generators that hold pages get no name here: an error releases the pages at once, not with its traceback.
        if self._in_order:
            for at, run in self.access.hold_runs(table, wanted, in_order=True):
                yield self._column(at), run
        else:
            yield from self.access.hold_batches(table, wanted)

    def _column(self, number: int) -> int:
        """The place of the block table's page ``number`` among the pages that were read."""
        page = number - self._first
        return page if self._whole else self._place[page]

    def _paged_raw(self, pages: Sequence[int]) -> torch.Tensor:
        """[Hq, R, len(pages), tokens]."""
        paged = self._raw.view(*self._raw.shape[:2], -1, self.tokens)
        places = [self._place[page] for page in pages]
        if places == [*range(places[0], places[0] + len(places))]:  # as they were read
            return paged[:, :, places[0] : places[0] + len(places)]
        return paged[:, :, places]

    def _unseen(self, pages: Sequence[int]) -> tuple[int, int]:
        """The number of first and of last tokens of ``pages``, ascending, that are not visible."""
        return self.skip * (pages[0] == 0), (-self.end % self.tokens) * (pages[-1] == self.count - 1)

    def _tokens_of(self, pages: Sequence[int]) -> torch.Tensor:
        """The numbers of the visible tokens of ``pages``, ascending, counted from the first visible one."""
        before, after = self._unseen(pages)
        tokens = (torch.tensor(pages).view(-1, 1) * self.tokens + torch.arange(self.tokens)).flatten()
        return tokens[before : len(tokens) - after] - self.skip
