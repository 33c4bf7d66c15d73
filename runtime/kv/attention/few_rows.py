"""Attention of a few rows of queries to pages where they are: scores, a softmax over them all, values.

What eager attention computes, with the same roundings, in another order of float32 sums; to all pages, or to those that
a chooser wants.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional

from ....kernels.kv.certify import page_masses
from ....tiering.kv.pages import BlockTable, Page
from ..cache.layer import PagedLayer, SequencePages, Visible
from ..views.softmax import Softmax


class PageAttention:
    """A look of ``query`` [Hq, R, D] at the pages of one sequence, which are numbered from the first visible one on.

    ``bias`` [1 or Hq, R, T] is added to the scores of the T visible tokens.
    """

    def __init__(
        self, visible: Visible, row: SequencePages, query: torch.Tensor, softmax: Softmax, bias: torch.Tensor | None
    ) -> None:
        self.layer, self.row, self.query, self.softmax = visible.layer, row, query, softmax
        tokens = self.layer.shapes[0].tokens
        self._first = visible.start // tokens - row.keys.first  # among the track's pages
        self.skip = visible.start % tokens
        """Tokens of the first page that are not visible."""
        self.end = self.skip + visible.paged
        """Where the last visible token ends, counted from the first page's beginning."""
        self.count = -(-self.end // tokens)
        """Pages."""
        self.tokens = tokens
        self._bias = bias
        self._raw = torch.empty(0)
        self._whole = False  # all pages were read, and are in _raw in their order
        self._in_order = False  # pages are looked at as a sequence has them, not as somebody chose them
        self._place: dict[int, int] = {}  # otherwise: of each page that was read, among the pages in _raw

    @property
    def last_bias(self) -> torch.Tensor | None:
        """What is added to the scores of the last query, [T]; None if it sees all tokens."""
        return None if self._bias is None else self._bias[0, -1]

    def read_all(self) -> None:
        """Compute the scores of all pages, as they come into memory."""
        self._raw = torch.empty(*self.query.shape[:2], self.end, dtype=torch.float32)
        self._whole = True
        self._read(range(self.count))

    @property
    def keys(self) -> list[Page]:
        """All pages, those of keys."""
        return self.row.keys.pages[self._first : self._first + self.count]

    def read_here(self, pages: Sequence[int]) -> None:
        """Compute the scores of ``pages`` alone, ascending, as they come into memory."""
        self._raw = torch.empty(*self.query.shape[:2], len(pages) * self.tokens, dtype=torch.float32)
        self._place = {page: at for at, page in enumerate(pages)}
        self._read(pages)

    def _read(self, pages: Sequence[int]) -> None:
        self._in_order = True
        address, shape = self.layer.tier.pool.address, self.layer.shapes[0]
        for at, run in self.layer.pieces(self.row.keys, [self._first + page for page in pages]):
            format: Any = run[0].format
            place = self._column(at) * self.tokens
            format.scores(self.query, [*map(address, run)], shape, self.softmax.scaling, self._raw, place)

    def read(self, pages: Sequence[int]) -> None:
        """Compute the scores of ``pages`` besides those that were read."""
        if not self._place:
            self._raw = torch.empty(*self.query.shape[:2], self.count * self.tokens, dtype=torch.float32)
        address, shape = self.layer.tier.pool.address, self.layer.shapes[0]
        before = len(self._place)
        for at, run in self.layer.together(self.row.keys, [self._first + page for page in pages]):
            format: Any = run[0].format
            place = (before + at) * self.tokens
            format.scores(self.query, [*map(address, run)], shape, self.softmax.scaling, self._raw, place)
        self._place.update({page: before + at for at, page in enumerate(pages)})

    def scores(self, pages: Sequence[int]) -> torch.Tensor:
        """Of the visible tokens of ``pages``, ascending and read: [Hq, R, n], in the query's dtype, as eager attention
        has them before the softmax."""
        if self._whole:
            raw, bias = self._raw[..., self.skip :], self._bias
        else:
            before, after = self._unseen(pages)
            raw = self._paged_raw(pages).flatten(-2)
            raw = raw[..., before : raw.shape[-1] - after]
            bias = None if self._bias is None else self._bias[..., self._tokens_of(pages)]
        scores = self.softmax.capped(raw.to(self.query.dtype))
        return scores if bias is None else scores + bias

    def log_masses(self, pages: Sequence[int]) -> torch.Tensor:
        """The logarithms of the sums of exp(score) of ``pages``, ascending and read: float32 [Hq, R, len(pages)]."""
        scores, skip = self.scores(pages), self.skip * (pages[0] == 0)
        return page_masses(
            functional.pad(scores.float(), (skip, 0), value=-torch.inf) if skip else scores.float(), self.tokens
        )

    def hidden(self) -> list[int]:
        """Pages with tokens to which the bias makes a difference."""
        if self._bias is None:
            return []
        changed = (self._bias != 0).flatten(0, -2).any(0)
        padded = functional.pad(changed, (self.skip, -self.end % self.tokens))
        found: list[int] = padded.view(-1, self.tokens).any(-1).nonzero().flatten().tolist()
        return found

    def masses(self, pages: Sequence[int], probabilities: torch.Tensor) -> list[float]:
        """What each of ``pages``, ascending, got of ``probabilities`` [Hq, R, n], summed over rows and heads."""
        skip = self.skip if pages and pages[0] == 0 else 0
        share = functional.pad(probabilities.float().sum((0, 1)), (skip, 0))
        share = functional.pad(share, (0, -len(share) % self.tokens))
        found: list[float] = share.view(-1, self.tokens).sum(-1).tolist()
        return found

    def count_attention(self, probabilities: torch.Tensor) -> None:
        """All pages get the attention_score of their ``probabilities`` [Hq, R, T]."""
        self.layer.tier.pool.score(self.keys, self.masses(range(self.count), probabilities))

    def spread(self, pages: Sequence[int], probabilities: torch.Tensor, weights: torch.Tensor) -> None:
        """Put the ``probabilities`` [Hq, R, n] of the visible tokens of ``pages``, ascending and read, where they
        belong in ``weights`` [Hq, R, T]."""
        if self._whole:
            weights.copy_(probabilities)
        else:
            weights[..., self._tokens_of(pages)] = probabilities

    def weigh(self, pages: Sequence[int], probabilities: torch.Tensor) -> torch.Tensor:
        """[Hq, R, Dv]: values of ``pages``, ascending, times ``probabilities`` [Hq, R, n] of their visible tokens."""
        return self.weighed(pages, probabilities).to(self.query.dtype)

    def weighed(self, pages: Sequence[int], probabilities: torch.Tensor) -> torch.Tensor:
        """As ``weigh``, not rounded yet: float32."""
        skip = self.skip if pages and pages[0] == 0 else 0
        weights = functional.pad(probabilities, (skip, 0)) if skip else probabilities.contiguous()
        track, pool, shape = self.row.values, self.layer.tier.pool, self.layer.shapes[1]
        out = torch.zeros(*self.query.shape[:2], shape.dim, dtype=torch.float32)
        wanted = [self._first + page for page in pages]
        for at, run in self._runs(track, wanted):
            format: Any = run[0].format
            format.weigh(weights, at * self.tokens, [*map(pool.address, run)], shape, out)
        return out

    def _runs(self, track: BlockTable, wanted: Sequence[int]) -> Iterator[tuple[int, list[Page]]]:
        # No name is given to what holds pages: an error on the way lets go of them at once, not with its traceback.
        if self._in_order:
            for at, run in self.layer.pieces(track, wanted, in_order=True):
                yield self._column(at), run
        else:
            yield from self.layer.together(track, wanted)

    def _column(self, number: int) -> int:
        """Of the track's page ``number``, its place among the pages that were read."""
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
        """Of ``pages``, ascending, how many of the first and of the last tokens are not visible."""
        return self.skip * (pages[0] == 0), (-self.end % self.tokens) * (pages[-1] == self.count - 1)

    def _tokens_of(self, pages: Sequence[int]) -> torch.Tensor:
        """Numbers of the visible tokens of ``pages``, ascending, counted from the first visible one."""
        before, after = self._unseen(pages)
        tokens = (torch.tensor(pages).view(-1, 1) * self.tokens + torch.arange(self.tokens)).flatten()
        return tokens[before : len(tokens) - after] - self.skip


class PageSelector(Protocol):
    """Which pages a look is at."""

    drops: bool
    """Whether pages go that later queries could see."""

    def watched(self, rows: int) -> int:
        """Of a prompt of ``rows`` tokens, how many of the last ones' attention is to be counted."""
        ...

    def on_prefill(
        self, layer: PagedLayer, number: int, queries: int, masses: torch.Tensor | None, bias: torch.Tensor | None
    ) -> None:
        """The attention of many ``queries`` of sequence ``number`` has been computed, to all pages; the watched ones
        gave ``masses`` [T] to its tokens. ``bias`` [T] is the mask of the last one, None if it sees all tokens."""
        ...

    def choose(self, look: PageAttention, number: int) -> Sequence[int]:
        """Those whose values count, ascending, of sequence ``number``; their keys have been read."""
        ...

    def on_attention(self, look: PageAttention, number: int, pages: Sequence[int], probabilities: torch.Tensor) -> None:
        """What the softmax of ``pages`` came to, [Hq, R, n]."""
        ...

    def on_append(self, layer: PagedLayer, row: SequencePages) -> None:
        """Tokens were added to ``row``."""
        ...

    def expected(self, number: int, row: SequencePages) -> Iterable[Page]:
        """Pages that the next look at sequence ``number``, which ``row`` has, will probably be at."""
        ...


def attend(
    look: PageAttention, number: int, chooser: PageSelector | None, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """[Hq, R, Dv] for sequence ``number``; of all pages, or of those that ``chooser`` wants. ``weights`` [Hq, R, T],
    zeros, are filled with what each token counts."""
    if chooser is None:
        pages: Sequence[int] = range(look.count)
        look.read_all()
    else:
        pages = chooser.choose(look, number)
    probabilities = look.softmax.probabilities(look.scores(pages))
    if weights is not None:
        look.spread(pages, probabilities, weights)
    if chooser is not None:
        chooser.on_attention(look, number, pages, probabilities)
    elif look.layer.tier.encoding.counts:
        look.count_attention(probabilities)
    return look.weigh(pages, probabilities)
