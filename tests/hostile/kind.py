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


FAR = 0.1
"""The most that results of equal weights differ, relative to their norm. A format's products alone make 0.01."""


def close(one: Result, other: Result) -> bool:
    """Whether both are the same up to how a format rounds; wherever one is finite, the other is."""
    for a, b in zip(one, other, strict=True):
        finite = a.isfinite()
        if a.shape != b.shape or not torch.equal(finite, b.isfinite()):
            return False
        size = b[finite].double().norm()
        if float((a[finite].double() - b[finite].double()).norm()) > FAR * float(size):
            return False
    return True
