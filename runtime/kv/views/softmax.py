"""Scores to probabilities, as transformers' eager functions compute them: scaling, softcap and sinks of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Softmax:
    """``scaling`` of scores; ``softcap`` c makes a score c * tanh(score / c); ``sinks`` [Hq] are one more score of each
    row, without a value."""

    scaling: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @classmethod
    def of(cls, scaling: float, options: Mapping[str, Any]) -> "Softmax":
        """From ``options``, as a module passes them to its attention function."""
        return cls(scaling, options.get("softcap"), options.get("s_aux"))

    def to(self, device: torch.device) -> "Softmax":
        """The same for scores on ``device``."""
        return self if self.sinks is None else replace(self, sinks=self.sinks.to(device))

    def cap(self, scores: torch.Tensor) -> torch.Tensor:
        """``scores``, which are scaled, with the softcap."""
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap

    def to_probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """The softmax of ``scores`` [Hq, R, T], in their dtype."""
        if self.sinks is None:
            return functional.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
        combined = torch.cat([scores, self.sinks.reshape(-1, 1, 1).expand(-1, scores.shape[1], -1)], dim=-1)
        combined = combined - combined.max(dim=-1, keepdim=True).values
        return functional.softmax(combined, dim=-1, dtype=combined.dtype)[..., :-1]
