"""A softmax whose scores lie in several places: the sums of their rows are merged by log-sum-exp, in float32.

Only these sums and the weighted values go from one place to another. "Flash-Decoding" computes parts of a row in
parallel and merges their weighted values. Here the sums are merged first, and probabilities are rounded as in eager
attention. So the result differs from eager's only in the order of float32 sums, unless there are sinks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class SoftmaxSums(NamedTuple):
    """Sums of the rows of some scores, float32 [Hq, R, 1]: the largest score ``most``, and the ``total`` of
    exp(score - most)."""

    most: torch.Tensor
    total: torch.Tensor

    @classmethod
    def of(cls, scores: torch.Tensor) -> "SoftmaxSums":
        """The sums of ``scores`` [Hq, R, n], n > 0."""
        wide = scores.float()
        most = wide.amax(-1, keepdim=True)
        return cls(most, (wide - most).exp_().sum(-1, keepdim=True))

    @classmethod
    def of_sinks(cls, sinks: torch.Tensor, rows: int) -> "SoftmaxSums":
        """The sums of ``sinks`` [Hq], one more score for each of ``rows`` rows."""
        most = sinks.float().view(-1, 1, 1).expand(-1, rows, -1)
        return cls(most, torch.ones_like(most))

    @classmethod
    def merge(cls, parts: Sequence["SoftmaxSums"]) -> "SoftmaxSums":
        """The sums of all scores together, from those of ``parts``."""
        most = torch.stack([part.most for part in parts]).amax(0)
        total = torch.stack([part.total * (part.most - most).exp() for part in parts]).sum(0)
        return cls(most, total)

    def to(self, device: torch.device) -> "SoftmaxSums":
        """The same on ``device``. The CPU does not wait for a copy to a CUDA device."""
        return SoftmaxSums(*(part.to(device, non_blocking=device.type != "cpu") for part in self))

    def to_probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """The softmax of ``scores`` [Hq, R, n], which are some of those summed here, in their dtype."""
        return (scores.float() - self.most).exp_().div_(self.total).to(scores.dtype)


def weigh_values(probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``values`` [H, n, Dv] times ``probabilities`` [Hq, R, n], float32 [Hq, R, Dv]. Query head h has the values of
    head h // (Hq / H)."""
    heads, rows, tokens = probabilities.shape
    grouped = probabilities.float().view(len(values), -1, tokens)
    return torch.matmul(grouped, values.float()).view(heads, rows, -1)
