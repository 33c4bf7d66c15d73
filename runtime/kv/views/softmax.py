"""Scores to probabilities as transformers' eager functions make them: what differs between models besides numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Softmax:
    """``scaling`` of scores; ``softcap`` c makes them c * tanh(score / c); ``sinks`` [Hq] are one more score of each
    row, without a value."""

    scaling: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @classmethod
    def of(cls, scaling: float, options: Mapping[str, Any]) -> "Softmax":
        """As a module says it to its attention function."""
        return cls(scaling, options.get("softcap"), options.get("s_aux"))

    def on(self, device: torch.device) -> "Softmax":
        """The same for scores on ``device``."""
        return self if self.sinks is None else replace(self, sinks=self.sinks.to(device))

    def capped(self, scores: torch.Tensor) -> torch.Tensor:
        """``scores``, scaled, with the softcap."""
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """Of ``scores`` [Hq, R, T], in their dtype."""
        if self.sinks is None:
            return functional.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
        combined = torch.cat([scores, self.sinks.reshape(-1, 1, 1).expand(-1, scores.shape[1], -1)], dim=-1)
        combined = combined - combined.max(dim=-1, keepdim=True).values
        return functional.softmax(combined, dim=-1, dtype=combined.dtype)[..., :-1]
