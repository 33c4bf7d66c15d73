"""The interface of a summary of a page of keys: a few bytes in memory that bound the attention the page can get.

A bound is one of the log-mass ``log(sum(exp(score)))`` over the tokens of a page, for scores as attention computes
them: query times key, times ``scaling``, capped where the model caps them, each step rounded to the query's dtype. It
holds for scores without rounding too. Rounding moves a score by a share of itself, so that share of every bound is
added: at most 0.8 % in bfloat16 (1.6 % with a softcap).
"""

from typing import NamedTuple, Protocol

import torch


class Bounds(NamedTuple):
    """Bounds of the log-masses of n pages, float32 [Hq, R, n] each."""

    lower: torch.Tensor
    upper: torch.Tensor


class Summary(Protocol):
    """A kind of summary. Not changed after it was made; safe to use from several threads."""

    name: str
    shared_bytes: int
    """Bytes that all pages share, such as a basis."""

    def page_bytes(self, heads: int, tokens: int, dim: int) -> int:
        """Bytes of the summary of a page of keys [heads, tokens, dim]. Raises ValueError for shapes it cannot have."""
        ...

    def fit(self, keys: torch.Tensor) -> "Summary":
        """This kind of summary, fitted to ``keys`` [H, T, D], such as those of a layer's first pages. Bounds of other
        keys hold too, and are less tight. Most kinds are the same for all keys."""
        ...

    def build(self, keys: torch.Tensor, tokens: int | None = None) -> torch.Tensor:
        """Summaries, uint8 [n, page_bytes], of the n pages of ``keys`` [n, H, T, D]. A full page has ``tokens`` tokens
        (None: T); these pages have T."""
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


def bound_rounding(dtype: torch.dtype, softcap: float | None) -> float:
    """The share of itself by which a score of ``dtype`` may be off. The product and the scaling are rounded once each;
    a ``softcap`` adds a division, a tanh and a product."""
    share: float = torch.finfo(dtype).eps / 2
    steps = 2 if softcap is None else 5
    return 1.02 * steps * share


def round_up(numbers: torch.Tensor) -> torch.Tensor:
    """``numbers``, float32 and not negative, as bfloat16, rounded up."""
    bits = numbers.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)


def bound_norms(rows: torch.Tensor) -> torch.Tensor:
    """Norms of float32 ``rows`` [..., D], never too small: the errors of rounding and of squares near 0 are added."""
    norm: torch.Tensor = rows.norm(dim=-1)
    return norm * (1 + 1e-5) + 3e-18


def open_unknown(bounds: Bounds) -> Bounds:
    """``bounds``; those that are not finite become infinite: a score that overflowed may be anything."""
    finite = bounds.lower.isfinite() & bounds.upper.isfinite()
    infinity = bounds.upper.new_full((), torch.inf)
    return Bounds(torch.where(finite, bounds.lower, -infinity), torch.where(finite, bounds.upper, infinity))
