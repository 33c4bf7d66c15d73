"""The size dial: with ``format = "fit:SIZE"``, the format of each matrix, so that the whole bundle has that size.

A module's block, or an expert's, is stored in one format. Ideas: bits by expert are those of "EdgeMoE: Empowering
Sparse Large Language Models on Mobile Devices", fewer than four, from planes of which the first ones are stored, those
of "BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ....tiering.errors import ConfigError
from ....tiering.store.bundle.manifest import TENSOR_ALIGNMENT, Block, TensorSpec
from ....tiering.units import format_size
from ...checkpoints.layout import Layout
from ...checkpoints.weights import SourceFormat
from ...config.values import FIT, fit_size
from .fit import Option, choose_options, least_size, loss
from .formats import AS_IS, Choice, Key
from .planes import Lengths, Planes, encode_layout

_NUMBERS: Mapping[Choice, float] = {
    Choice("int8"): 5e-5,
    Choice("int4-32"): 4e-3,
    Choice("int4-64"): 6e-3,
    Choice("int4-128"): 7e-3,
}
_TWO_BITS: Mapping[Choice, float] = {Choice("stacked", planes=1): 0.09}
WAYS: Mapping[str, Mapping[Choice, float]] = {
    # Planes of experts can be left out at run time. What is always read whole has the same numbers in one plane.
    "expert": {**_NUMBERS, Choice("stacked", planes=2): 5e-3, **_TWO_BITS},
    "dense": {**_NUMBERS, Choice("nested", planes=1): 5e-3, **_TWO_BITS},
}
"""How a block of each kind may be stored, besides as it is; and the usual squared error of a matrix, relative to it."""
_NEAR = Choice("int8")
_KEPT, _EXACT = Choice(AS_IS), Choice("lossless")
"""Ways that lose nothing: the second only for a size in which all could have ``_NEAR``."""


class Measure(Protocol):
    """Tells what arranging cannot know without the weights. Raises CheckpointError for numbers that no format can
    have."""

    def lengths(self, spec: TensorSpec, expert: int | None, choice: Choice) -> Planes:
        """Bytes of each plane of a matrix, of an expert's with its number. Raises UnsuitableShape."""
        ...

    def expect(self, blocks: Sequence[Block]) -> None:
        """The lengths of all matrices of ``blocks``, which have packings, will be asked for, in this order."""
        ...

    def losses(
        self, blocks: Sequence[Block], chosen: Mapping[str, Choice], each: Callable[[Block], None]
    ) -> list[list[float]]:
        """For each of ``blocks``, what is lost by storing its matrices in ``chosen`` in each of ``WAYS`` of its kind.
        ``each`` is called with a block while its weights are at hand."""
        ...


def fit_to_size(
    layout: Layout, chosen: Mapping[str, Choice], stored: Mapping[str, SourceFormat], measure: Measure
) -> dict[Key, Choice]:
    """``chosen`` for ``layout`` with a format for each matrix that says ``fit:SIZE``.

    The layout has that size if it is encoded with ``equal`` false. Raises ConfigError, which says the least size, for
    one that is too small.
    """
    dial = _Dial(layout, chosen, stored, measure.lengths)
    if not dial.blocks:
        return dial.found
    dial.check()
    return dial.solve(measure.losses(dial.blocks, dial.open, dial.measure))


class _Dial:
    """Which of ``blocks`` is stored how."""

    def __init__(
        self, layout: Layout, chosen: Mapping[str, Choice], stored: Mapping[str, SourceFormat], lengths: Lengths
    ) -> None:
        self.open = {name: choice for name, choice in chosen.items() if choice.format.startswith(FIT)}
        """What says ``fit:SIZE``, by name."""
        self.found: dict[Key, Choice] = {name: each for name, each in chosen.items() if name not in self.open}
        """All else."""
        self.blocks = [block for block in layout.blocks if any(spec.name in self.open for spec in block.tensors)]
        self._stored, self._lengths = stored, lengths
        self._known: dict[object, int] = {}
        self._size = next((fit_size(choice.format) for choice in self.open.values()), None) or 0
        ours = {block.id for block in self.blocks}
        others = tuple(block for block in layout.blocks if block.id not in ours)
        self._fixed = self._total(Layout(others, {}), self.found) if ours else 0
        # In less, a few exact matrices hardly gain what others lose; and how long they are is found out by encoding.
        self._exact = self._size >= self._fixed + sum(self._bytes(block, _NEAR) for block in self.blocks)

    def check(self) -> None:
        """Raise ConfigError for a size that is too small."""
        least = self._fixed + least_size(
            [self._options(block, [0.0] * len(WAYS[block.id.kind])) for block in self.blocks]
        )
        if self.blocks and self._size < least:
            raise ConfigError(
                f"weights_format = {FIT}{self._size}: the least that this model can be stored in is "
                f"{format_size(least)}; write {FIT}{least} or more"
            )

    def measure(self, block: Block) -> None:
        """Find out what ``block`` takes where that depends on its numbers, if it will be asked for."""
        if self._exact:
            self._bytes(block, _EXACT)

    def solve(self, losses: list[list[float]]) -> dict[Key, Choice]:
        """All choices, where each block has these ``losses`` by way."""
        options = [self._options(block, each) for block, each in zip(self.blocks, losses, strict=True)]
        room = self._size - self._fixed
        ways = [choose_options(options, room)]
        if self._exact:  # without, too: no larger size loses more, though a smaller one has fewer options
            more = [
                [*each, Option(_EXACT, self._bytes(block, _EXACT), 0.0)]
                for block, each in zip(self.blocks, options, strict=True)
            ]
            ways.insert(0, choose_options(more, room))
        best = min(ways, key=loss)
        found = dict(self.found)
        for block, option in zip(self.blocks, best, strict=True):
            found |= self._choices(block, option.name)  # type: ignore[arg-type]
        return found

    def _options(self, block: Block, losses: list[float]) -> list[Option]:
        ways = [*WAYS[block.id.kind], _KEPT]
        return [Option(way, self._bytes(block, way), loss) for way, loss in zip(ways, [*losses, 0.0], strict=True)]

    def _choices(self, block: Block, way: Choice) -> dict[Key, Choice]:
        """Of the block's matrices; where nothing is to be lost, one that the source has quantised stays so."""
        found: dict[Key, Choice] = {}
        for spec in block.tensors:
            choice, source = self.open.get(spec.name), self._stored.get(spec.name)
            key = spec.name if block.id.expert is None else (spec.name, block.id.expert)
            if choice is not None and source is not None and way in (_KEPT, _EXACT):
                found[key] = Choice(source.format, source.transposed)
            elif choice is not None and way != _KEPT:
                found[key] = replace(way, transposed=choice.transposed)
        return found

    def _bytes(self, block: Block, way: Choice) -> int:
        """What the block takes; equal ones are looked at once, unless it depends on their numbers."""
        shapes = tuple(
            (
                spec.dtype,
                spec.shape,
                spec.offset % TENSOR_ALIGNMENT,
                self.open.get(spec.name),
                self._stored.get(spec.name),
            )
            for spec in block.tensors
        )
        key = block.id if way == _EXACT else (block.id.kind, shapes, way)
        if key not in self._known:
            self._known[key] = self._total(Layout((block,), {}), self._choices(block, way))
        return self._known[key]

    def _total(self, layout: Layout, chosen: Mapping[Key, Choice]) -> int:
        return encode_layout(layout, chosen, self._lengths, equal=False)[0].total_bytes
