"""Exact attention of many rows, piece by piece of keys and values.

The softmax is taken as in "Online normalizer calculation for softmax" (Milakov and Gimelshein): a row keeps its highest
score so far, the sum of exp(score - highest), and the sum of values weighted by that. Scores get the roundings that
transformers' eager attention gives them; what is summed is float32, and rounded once, at the end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

SCRATCH = 16 << 20
"""Bytes that a call of ``attend`` may take for scores, if it is told nothing else."""

_TOKENS = 1024  # of a block, at most: enough for a product to be fast
_SCORE = 12  # bytes that a score, or a number of a row's result, takes with what is made on the way


class Partial:
    """What attention of R rows of Hq heads has come to after some of the tokens; all float32.

    highest [Hq, R]: the highest score. mass [Hq, R]: the sum of exp(score - highest). values [Hq, R, Dv]: the sum of
    exp(score - highest) * value.
    """

    def __init__(self, heads: int, rows: int, dim: int, sinks: torch.Tensor | None = None) -> None:
        """Before any token. ``sinks`` [Hq] are scores without a value that each row has besides its tokens', as in
        "Efficient Streaming Language Models with Attention Sinks" (Xiao et al.); of partials to be merged, one has
        them."""
        self.highest = torch.full((heads, rows), -torch.inf)
        self.mass = torch.zeros(heads, rows)
        self.values = torch.zeros(heads, rows, dim)
        if sinks is not None:
            self.highest.copy_(sinks[:, None])
            self.mass.fill_(1)

    def add(self, rows: slice, scores: torch.Tensor, values: torch.Tensor) -> None:
        """Some tokens more for ``rows``: ``scores`` [Hq, rows, T], rounded, and ``values`` [Hkv, T, Dv]."""
        highest = torch.maximum(self.highest[:, rows], scores.amax(2).float())
        weights = scores.float().sub_(_finite(highest)[:, :, None]).exp_()
        kept = torch.exp(self.highest[:, rows] - _finite(highest))
        self.highest[:, rows] = highest
        self.mass[:, rows] = self.mass[:, rows] * kept + weights.sum(2)
        grouped = weights.view(len(values), -1, values.shape[1])
        added = torch.bmm(grouped, values.float()).view(*weights.shape[:2], values.shape[2])
        self.values[:, rows] = self.values[:, rows] * kept[:, :, None] + added

    def result(self, dtype: torch.dtype) -> torch.Tensor:
        """[Hq, R, Dv]; 0 in rows that saw no token."""
        return (self.values / self.mass.clamp_min(torch.finfo(torch.float32).tiny)[:, :, None]).to(dtype)

    @property
    def logsumexp(self) -> torch.Tensor:
        """Of the scores, [Hq, R]."""
        return self.highest + self.mass.log()


def merge(partials: Sequence[Partial]) -> Partial:
    """Attention to the tokens of all of ``partials``, at least one, of the same rows."""
    merged = Partial(*partials[0].values.shape)
    torch.amax(torch.stack([partial.highest for partial in partials]), 0, out=merged.highest)
    for partial in partials:
        kept = torch.exp(partial.highest - _finite(merged.highest))
        merged.mass.addcmul_(partial.mass, kept)
        merged.values.addcmul_(partial.values, kept[:, :, None])
    return merged


@dataclass(frozen=True)
class Visible:
    """Which of the keys 0 to T - 1 a row sees.

    Row r is the token at ``position + r``, counted from the first key (so keys may begin behind it, or before 0), and
    sees keys up to itself; with a ``window``, only the last that many of those. Without a position it sees all.
    """

    position: int | None = None
    window: int | None = None

    def span(self, rows: slice, tokens: int) -> slice:
        """The tokens that any of ``rows`` sees."""
        if self.position is None:
            return slice(0, tokens)
        start = 0 if self.window is None else max(0, self.position + rows.start - self.window + 1)
        return slice(start, max(start, min(tokens, self.position + rows.stop)))

    def hidden(self, rows: slice, tokens: slice) -> torch.Tensor | None:
        """Whether each of ``rows`` does not see each of ``tokens``, bool [rows, tokens]; None if all see all."""
        if self.position is None:
            return None
        first, last = self.position + rows.start, self.position + rows.stop - 1
        if tokens.stop <= first + 1 and (self.window is None or tokens.start > last - self.window):
            return None
        row = torch.arange(first, last + 1)[:, None]
        token = torch.arange(tokens.start, tokens.stop)
        hidden = token > row
        return hidden if self.window is None else hidden.logical_or_(token <= row - self.window)


ALL = Visible()


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    partial: Partial,
    *,
    visible: Visible = ALL,
    mask: torch.Tensor | None = None,
    softcap: float | None = None,
    scratch: int = SCRATCH,
) -> None:
    """Add the attention of ``query`` [Hq, R, D] to ``keys`` [Hkv, T, D] and ``values`` [Hkv, T, Dv] to ``partial``.

    ``mask`` [R, T], [1, R, T] or [Hq, R, T] is added to the scores; of bools, it says what is seen. What it hides adds
    to what ``visible`` hides. ``softcap`` c makes scores c * tanh(score / c). Blocks of rows and tokens keep within
    ``scratch`` bytes; those of which no row sees a token are left out.
    """
    if not query.numel() or not keys.numel():
        return
    for rows, tokens in _blocks(query.shape, values.shape, visible, scratch):
        part = query[:, rows]
        grouped = part.reshape(len(keys), -1, query.shape[2])
        scores = torch.bmm(grouped, keys[:, tokens].mT).view(*part.shape[:2], -1).mul_(scaling)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        if mask is not None:
            _apply(mask[..., rows, tokens], scores)
        hidden = visible.hidden(rows, tokens)
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
        partial.add(rows, scores, values[:, tokens])


def _blocks(query: torch.Size, values: torch.Size, visible: Visible, scratch: int) -> Iterator[tuple[slice, slice]]:
    """Rows and tokens to compute at a time within ``scratch`` bytes (or one row and one token) for queries [Hq, R, D]
    and values [Hkv, T, Dv]."""
    heads, rows, _ = query
    kv_heads, tokens, dim = values
    wide = 4 * kv_heads * dim  # a token's values, in float32
    long = max(1, min(_TOKENS, tokens, (scratch - heads * _SCORE * dim) // (heads * _SCORE + wide)))
    high = max(1, (scratch - long * wide) // (heads * _SCORE * (long + dim)))
    for first in range(0, rows, high):
        some = slice(first, min(rows, first + high))
        seen = visible.span(some, tokens)
        for start in range(seen.start, seen.stop, long):
            yield some, slice(start, min(seen.stop, start + long))


def _apply(mask: torch.Tensor, scores: torch.Tensor) -> None:
    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, -torch.inf)
    else:
        scores.add_(mask)


def _finite(highest: torch.Tensor) -> torch.Tensor:
    """0 where there was no score yet: -inf - 0 is -inf, where -inf - -inf would be no number."""
    return highest.masked_fill(highest == -torch.inf, 0)
