"""Arrange a bundle, the third stage of packing: a format for each matrix, and a place for each block.

The order of blocks is that of the layout (runtime/checkpoints/layout.py). expert_order.py orders experts by their use.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from transformers import PreTrainedModel

from ....kernels.formats.base import UnsuitableShape
from ....tiering.progress import Progress, Quiet
from ....tiering.store.bundle.manifest import Block, TensorSpec
from ...checkpoints.layout import Layout
from ...checkpoints.weights import SourceFormat
from .formats import Choice, Rules, choose_formats
from .planes import Planes, encode_layout
from .shares import assumed_shares
from .size_target import WAYS, Measure, fit_to_size

ENCODED = 0.67
"""Share of their bytes that lossless weights take, about."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """The ``layout`` of a bundle, with encoded matrices. ``notes`` say what could not be stored as it was asked for."""

    layout: Layout
    notes: tuple[str, ...] = ()


def arrange(
    model: PreTrainedModel,
    layout: Layout,
    rules: Rules,
    stored: Mapping[str, SourceFormat],
    measure: Measure,
    progress: Progress | None = None,
) -> Arranged:
    """The arrangement of ``layout`` of ``model`` by ``rules``; ``stored`` are weights that the source has quantised.

    Places must be known before anything is written, so ``measure`` is asked where lengths depend on the numbers. Raises
    ConfigError for a size that is too small, and what ``measure`` raises.
    """
    progress = progress or Quiet()
    chosen = fit_to_size(layout, choose_formats(model, layout, rules, stored), stored, measure)
    if not chosen:
        return Arranged(layout)
    progress.start("measuring", layout.total_bytes)
    try:
        equal = rules.size is None
        return Arranged(
            *encode_layout(layout, chosen, measure.lengths, progress.advance, equal=equal, expect=measure.expect)
        )
    finally:
        progress.finish()


def estimate(model: PreTrainedModel, layout: Layout, rules: Rules, stored: Mapping[str, SourceFormat]) -> Layout:
    """As ``arrange``, as far as that can be said before any weight is read. Raises ConfigError."""
    return arrange(model, layout, rules, stored, _Estimates(model, layout)).layout


class _Estimates:
    """Measure by what is usual."""

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        self._model, self._layout = model, layout

    def lengths(self, spec: TensorSpec, expert: int | None, choice: Choice) -> Planes:
        """As Measure.lengths, the same for matrices of one shape."""
        if spec.dtype != "bfloat16":
            raise UnsuitableShape(f"{choice.format} takes bfloat16 weights, not {spec.dtype}")
        return (int(ENCODED * prod(spec.shape) * getattr(torch, spec.dtype).itemsize),)

    def expect(self, blocks: Sequence[Block]) -> None:
        """As Measure.expect: there is nothing to prepare."""

    def losses(
        self, blocks: Sequence[Block], chosen: Mapping[str, Choice], each: Callable[[Block], None]
    ) -> list[list[float]]:
        """As Measure.losses, the usual errors."""
        shares = assumed_shares(self._model, self._layout, None)
        return [[error * shares[block.id] for error in WAYS[block.id.kind].values()] for block in blocks]
