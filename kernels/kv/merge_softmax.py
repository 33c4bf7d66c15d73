"""A softmax whose scores lie in several places: what their rows sum up to is merged by log-sum-exp, in float32.

Only these sums, and values that were weighed, go from one place to another. "Flash-Decoding" computes parts of a row
beside each other and merges what they weighed; here the sums are merged before, and probabilities rounded, as eager
attention does it. So the result differs from eager's in the order of float32 sums alone, unless there are sinks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Sums(NamedTuple):
    """Of the rows of some scores, float32 [Hq, R, 1]: the largest one, and the ``total`` of exp(score - most)."""

    most: torch.Tensor
    total: torch.Tensor

    @classmethod
    def of(cls, scores: torch.Tensor) -> "Sums":
        """Of ``scores`` [Hq, R, n], n > 0."""
        wide = scores.float()
        most = wide.amax(-1, keepdim=True)
        return cls(most, (wide - most).exp_().sum(-1, keepdim=True))

    @classmethod
    def of_sinks(cls, sinks: torch.Tensor, rows: int) -> "Sums":
        """Of ``sinks`` [Hq], one more score of each row."""
        most = sinks.float().view(-1, 1, 1).expand(-1, rows, -1)
        return cls(most, torch.ones_like(most))

    @classmethod
    def merged(cls, parts: Sequence["Sums"]) -> "Sums":
        """Of all scores that ``parts`` are of."""
        most = torch.stack([part.most for part in parts]).amax(0)
        total = torch.stack([part.total * (part.most - most).exp() for part in parts]).sum(0)
        return cls(most, total)

    def on(self, device: torch.device) -> "Sums":
        """The same on ``device``; to a CUDA device, nothing waits for the copy but what is computed there."""
        return Sums(*(part.to(device, non_blocking=device.type != "cpu") for part in self))

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """The softmax of ``scores`` [Hq, R, n], some of those that these are the sums of, in their dtype."""
        return (scores.float() - self.most).exp_().div_(self.total).to(scores.dtype)


def weighed(probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``values`` [H, n, Dv] times ``probabilities`` [Hq, R, n], float32 [Hq, R, Dv]; head h of Hq has the values of
    head h // (Hq / H)."""
    heads, rows, tokens = probabilities.shape
    grouped = probabilities.float().view(len(values), -1, tokens)
    return torch.matmul(grouped, values.float()).view(heads, rows, -1)
