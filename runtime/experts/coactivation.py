"""Guesses the experts of the next layer from those of the present one, by counts of which followed which.

It needs no router that is recognised. ("MoE-Infinity: Efficient MoE Inference on Personal Machines with Sparsity-Aware
Expert Cache" keeps such statistics for whole sequences.)
"""

import numpy as np
import torch

_ENOUGH = 1 << 20
"""Pairs after which all counts are halved, so that older pairs count less."""


class CoActivation:
    """How often each expert of a layer was used by a token that had used an expert of the layer before."""

    def __init__(self, before: int, after: int) -> None:
        """The numbers of experts of the two layers."""
        self._counts = np.full((before + 1, after + 1), 1e-3, dtype=np.float32)  # the last ones stand for "no expert"
        self._seen = 0

    def learn(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Count tokens that chose ``before`` [tokens, top_k] in one layer and ``after`` [tokens, top_k] in the next."""
        rows, columns = self._counts.shape
        pairs = before.clamp(max=rows - 1).unsqueeze(2) * columns + after.clamp(max=columns - 1).unsqueeze(1)
        self._counts += np.bincount(pairs.flatten().numpy(), minlength=rows * columns).reshape(rows, columns)
        self._seen += pairs.numel()
        if self._seen > _ENOUGH:
            self._counts /= 2
            self._seen //= 2

    def experts(self, before: torch.Tensor, top_k: int) -> list[int]:
        """The experts that tokens will probably choose, which chose ``before`` [tokens, top_k]: ``top_k`` for each
        token. For one token the likeliest is first; for several, experts ascend."""
        counts = self._counts[:, :-1]
        shares = counts / counts.sum(axis=1, keepdims=True)
        scores = shares[before.clamp(max=len(counts) - 1).numpy()].sum(axis=1)
        chosen = np.argsort(-scores, axis=1)[:, :top_k]
        found: list[int] = (chosen[0] if len(chosen) == 1 else np.unique(chosen)).tolist()
        return found
