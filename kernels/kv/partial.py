"""Attention to a part of the keys and values, and how parts become the whole: merged by log-sum-exp, in float32.

Parts may be computed in different places, from different pieces. Only the sums of a part go from one to the other. (As
in "FlashAttention" and "Flash-Decoding", which compute parts of a row beside each other.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Partial(NamedTuple):
    """What attention to some tokens comes to, float32: the largest score ``most`` [Hq, R, 1] of each row; the ``total``
    [Hq, R, 1] of exp(score - most); values ``weighted`` [Hq, R, Dv] with these."""

    most: torch.Tensor
    total: torch.Tensor
    weighted: torch.Tensor

    def on(self, device: torch.device) -> "Partial":
        """The same on ``device``; nothing waits for the copy but what is computed there."""
        return Partial(*(part.to(device, non_blocking=True) for part in self))


def attended(scores: torch.Tensor, values: torch.Tensor) -> Partial:
    """Attention with ``scores`` [Hq, R, n] to ``values`` [H, n, Dv]; head h of Hq looks at head h // (Hq / H)."""
    scores = scores.float()
    most = scores.amax(-1, keepdim=True)
    weights = (scores - most).exp_()
    heads, rows, tokens = weights.shape
    weighted = torch.matmul(weights.view(len(values), -1, tokens), values.float())
    return Partial(most, weights.sum(-1, keepdim=True), weighted.view(heads, rows, -1))


def sink(sinks: torch.Tensor, rows: int, dim: int) -> Partial:
    """``sinks`` [Hq] as one more score of each row, whose value is 0."""
    most = sinks.float().view(-1, 1, 1).expand(-1, rows, -1)
    return Partial(most, torch.ones_like(most), most.new_zeros(len(sinks), rows, dim))


def merged(parts: Sequence[Partial], dtype: torch.dtype) -> torch.Tensor:
    """[Hq, R, Dv] in ``dtype``, rounded once: attention to all tokens of ``parts``, which lie in one place."""
    most = torch.stack([part.most for part in parts]).amax(0)
    scales = [(part.most - most).exp() for part in parts]
    total = torch.stack([part.total * scale for part, scale in zip(parts, scales, strict=True)]).sum(0)
    weighted = torch.stack([part.weighted * scale for part, scale in zip(parts, scales, strict=True)]).sum(0)
    return (weighted / total).to(dtype)
