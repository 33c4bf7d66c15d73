"""Measurements of a model with a text: which inputs of a matrix are large, how much each module and expert adds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ....tiering.units import BlockId
from ..arrange.formats import Key


@dataclass(frozen=True, slots=True)
class Calibration:
    """``importance`` has mean squared inputs [k] of matrices, float32.

    ``shares`` says how much the output of a module or an expert counts, for those in layers (see arrange/shares.py).
    """

    importance: Mapping[Key, torch.Tensor]
    shares: Mapping[BlockId, float]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return sum(each.nbytes for each in self.importance.values())

    def of_stored(self, tied: Mapping[str, str]) -> "Calibration":
        """The same with the names that weights are stored under: inputs are seen at all modules that share one."""
        named = {tied.get(key, key) if isinstance(key, str) else key: each for key, each in self.importance.items()}
        return replace(self, importance=named)


NOTHING = Calibration({}, {})


class Calibrator(Protocol):
    """Calibrates when it is called. ``digest`` says with what, without doing it."""

    @property
    def digest(self) -> str:
        """SHA-256 of what it measures with."""
        ...

    def __call__(self) -> Calibration:
        """The measurements."""
        ...
