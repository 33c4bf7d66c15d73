"""boxes: the least and the greatest element of each channel of a page. The smallest summary, and a loose one.

From "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference". A score is at most the sum of what each
channel can add. No one key has all of that, and less so with more channels.
"""

import math

import torch

from .base import Bounds, bound_norms, bound_rounding, open_unknown, round_up

_HEAD = 8
"""Bytes before a head's corners: the count of tokens, int32, and the norm of the farthest corner, float32."""


class Boxes:
    """The summary ``boxes``. Bytes of a head of a page: count and norm, then bfloat16 [D] of the least and [D] of the
    greatest elements."""

    name = "boxes"
    shared_bytes = 0

    def page_bytes(self, heads: int, tokens: int, dim: int) -> int:
        """As in Summary."""
        return heads * (_HEAD + 4 * dim)

    def fit(self, keys: torch.Tensor) -> "Boxes":
        """As in Summary."""
        return self

    def build(self, keys: torch.Tensor, tokens: int | None = None) -> torch.Tensor:
        """As in Summary."""
        pages, _, there, _ = keys.shape
        numbers = keys.float()
        corners = torch.stack([-_above(-numbers.amin(2)), _above(numbers.amax(2))], 2)
        reach = bound_norms(corners.float().abs().amax(2))
        count = torch.where(reach.isfinite() & numbers.isfinite().all(-1).all(-1), there, 0).to(torch.int32)
        parts = (
            part.contiguous().view(torch.uint8) for part in (count[..., None], reach[..., None], corners.flatten(2))
        )
        return torch.cat(list(parts), -1).view(pages, -1)

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
        """As in Summary."""
        all_heads, rows, dim = query.shape
        asked = query.float().reshape(heads, -1, dim)
        per_head = summaries.view(len(summaries), heads, -1).transpose(0, 1)
        count = per_head[..., :4].contiguous().view(torch.int32).view(heads, 1, -1)
        reach = per_head[..., 4:_HEAD].contiguous().view(torch.float32).view(heads, 1, -1)
        corners = per_head[..., _HEAD:].contiguous().view(torch.bfloat16).float()
        both = torch.cat([asked.clamp_max(0), asked.clamp_min(0)], -1)
        slip = bound_norms(asked)[..., None] * reach * (2.0**-24 * (4 * dim + 64))
        upper = scaling * (both @ corners.mT + slip)
        lower = scaling * (both.roll(dim, -1) @ corners.mT - slip)
        if softcap is not None:
            lower, upper = softcap * ((lower / softcap).tanh() - 1e-6), softcap * ((upper / softcap).tanh() + 1e-6)
        share = bound_rounding(query.dtype, softcap)
        tokens_there = count.log().nan_to_num(neginf=math.inf)  # nothing is known of keys that are not finite
        lower = lower - share * lower.abs() + tokens_there - 1e-5
        upper = upper + share * upper.abs() + tokens_there + 1e-5
        return Bounds(*(bound.view(all_heads, rows, -1) for bound in open_unknown(Bounds(lower, upper))))


def _above(numbers: torch.Tensor) -> torch.Tensor:
    """``numbers``, float32, as bfloat16, rounded up."""
    bits = numbers.contiguous().view(torch.int32)
    towards_zero = (bits >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(numbers < 0, towards_zero, round_up(numbers))
