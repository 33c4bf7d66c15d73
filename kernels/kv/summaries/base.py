"""What a summary of a page of keys is: a few bytes that stay in memory and bound the attention the page can get.

Bounds are of ``log(sum(exp(score)))`` over the tokens of a page, for scores as attention computes them: query times
key, times ``scaling``, capped where the model caps them, each step rounded to the query's dtype. They hold for scores
without rounding too. Rounding moves a score by a share of itself, so that share of every bound is added: at most 0.8 %
in bfloat16 (1.6 % with a softcap).
"""

from typing import NamedTuple, Protocol

import torch


class Bounds(NamedTuple):
    """Of the log-mass of pages, float32 [Hq, R, n] each."""

    lower: torch.Tensor
    upper: torch.Tensor


class Summary(Protocol):
    """A kind of summary. Not changed after it was made; safe to use from several threads."""

    name: str
    shared_bytes: int
    """In memory beside the pages' own: a basis, say."""

    def page_bytes(self, heads: int, tokens: int, dim: int) -> int:
        """Bytes that sum up one page of keys [heads, tokens, dim]. Raises ValueError for pages it has no place for."""
        ...

    def fitted(self, keys: torch.Tensor) -> "Summary":
        """This kind of summary, made for such keys [H, T, D], as the first pages' of a layer. It sums up others as
        well, only less tightly. Most kinds are the same for all keys."""
        ...

    def build(self, keys: torch.Tensor, tokens: int | None = None) -> torch.Tensor:
        """Summaries, uint8 [n, page_bytes], of the n pages of ``keys`` [n, H, T, D], of ``tokens`` tokens if full (T if
        not given). A page that has fewer counts as having just these."""
        ...

    def log_bounds(
        self,
        query: torch.Tensor,
        summaries: torch.Tensor,
        *,
        heads: int,
        tokens: int,
        scaling: float,
        softcap: float | None = None,
    ) -> Bounds:
        """Bounds for each row of ``query`` [Hq, R, D] and each of ``summaries`` [n, page_bytes], of pages of ``heads``
        heads and ``tokens`` tokens; query head h has the keys of head h // (Hq / heads). ``scaling`` is positive.

        Where nothing can be said, the lower bound is -inf and the upper inf: of keys or queries with NaN or infinity,
        and of scores that float32 cannot have.
        """
        ...


def rounding(dtype: torch.dtype, softcap: float | None) -> float:
    """The share of itself by which a score of this dtype may be off: product and scaling are rounded once each, with a
    softcap its division, tanh and product too."""
    share: float = torch.finfo(dtype).eps / 2
    steps = 2 if softcap is None else 5
    return 1.02 * steps * share


def upwards(numbers: torch.Tensor) -> torch.Tensor:
    """float32 numbers, none negative, as bfloat16 that are not less."""
    bits = numbers.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)


def norms(rows: torch.Tensor) -> torch.Tensor:
    """Of float32 rows [..., D], never too small: roundings are added, and what is lost of squares near 0."""
    norm: torch.Tensor = rows.norm(dim=-1)
    return norm * (1 + 1e-5) + 3e-18


def known(bounds: Bounds) -> Bounds:
    """``bounds``, with those that are no numbers opened: what overflowed may be anything."""
    finite = bounds.lower.isfinite() & bounds.upper.isfinite()
    infinity = bounds.upper.new_full((), torch.inf)
    return Bounds(torch.where(finite, bounds.lower, -infinity), torch.where(finite, bounds.upper, infinity))
