"""What every kind of mutated file has: an honest one, a mutation, a use, and a judge of other results."""

import random
from pathlib import Path
from typing import Protocol

import torch

Result = list[torch.Tensor]
"""What using the files gave."""


class Kind(Protocol):
    """A kind of file."""

    def make(self, folder: Path) -> None:
        """Make honest files in ``folder``, which is there and empty."""
        ...

    def mutate(self, rng: random.Random, folder: Path) -> str:
        """Change something in ``folder``, a copy of honest files; in words, what."""
        ...

    def use(self, folder: Path, way: int) -> Result:
        """Use the files as people do, in one of several ways. Raises PenstockError."""
        ...

    def is_right(self, folder: Path, result: Result, way: int) -> bool:
        """Whether ``result``, unlike the honest one in this way, is right for what ``folder`` holds now."""
        ...


def equal(one: Result, other: Result) -> bool:
    """Whether both are the same bits; NaNs are alike."""
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(one, other, strict=True)
    )


def close(one: Result, other: Result) -> bool:
    """Whether both are the same up to how a format rounds; wherever one is finite, the other is."""
    for a, b in zip(one, other, strict=True):
        finite = a.isfinite()
        if a.shape != b.shape or not torch.equal(finite, b.isfinite()):
            return False
        size = float(b[finite].abs().max()) if finite.any() else 0.0
        if finite.any() and float((a - b)[finite].abs().max()) > 0.05 * size:
            return False
    return True
