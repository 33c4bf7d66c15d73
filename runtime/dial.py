"""The size dial: with ``format = "fit:SIZE"``, the format of each matrix, so that the whole bundle has that size.

A module's block, or an expert's, is stored in one format. Ideas: bits by expert are those of "EdgeMoE: Empowering
Sparse Large Language Models on Mobile Devices", fewer than four, from planes of which the first ones are stored, those
of "BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments".
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest

from torch import nn

from ..tiering.errors import ConfigError
from ..tiering.progress import Progress
from ..tiering.store.manifest import TENSOR_ALIGNMENT, Block
from ..tiering.units import format_size
from .calibration import Calibration
from .encoding import EncodedWeights, Planes, encoded
from .fit import Option, fit, least_size
from .formats import AS_IS, Choice, Key
from .layout import Layout
from .routes import Routes
from .sensitivity import assumed_shares, relative_errors, rows_of_each
from .settings import FIT, fit_size
from .threads import one_torch_thread
from .weights import Weights

_NUMBERS = tuple(map(Choice, ("int8", "int4-32", "int4-64", "int4-128")))
WAYS: Mapping[str, tuple[Choice, ...]] = {
    # Planes of experts can be left out at run time. What is always read whole has the same numbers in one plane.
    "expert": (*_NUMBERS, Choice("stacked", planes=2), Choice("stacked", planes=1)),
    "dense": (*_NUMBERS, Choice("nested", planes=1), Choice("stacked", planes=1)),
}
"""How a block of each kind may be stored, besides as it is."""


def fitted(
    model: nn.Module,
    plan: Layout,
    choices: Mapping[str, Choice],
    weights: Weights,
    calibration: Calibration,
    routes: Routes | None,
    progress: Progress,
) -> dict[Key, Choice]:
    """``choices`` for ``plan`` of ``model`` with those that say ``fit:SIZE`` made out.

    Errors are measured on ``weights`` and counted by ``calibration``, and by ``routes`` where that says nothing. Raises
    ConfigError, which says the least size, for one that is too small, and CheckpointError for numbers that no format
    can have.
    """
    open_ = {name: choice for name, choice in choices.items() if choice.format.startswith(FIT)}
    found: dict[Key, Choice] = {name: choice for name, choice in choices.items() if name not in open_}
    if not open_:
        return found
    blocks = [block for block in plan.blocks if any(spec.name in open_ for spec in block.tensors)]
    size = fit_size(next(iter(open_.values())).format)
    assert size is not None
    with one_torch_thread():
        room = size - _fixed(plan, found, weights, blocks)
        sizes = _Sizes(open_)
        least = least_size([[Option(way, sizes.of(block, way), 0) for way in _ways(block)] for block in blocks])
        if room < least:
            raise ConfigError(
                f"weights_format = {FIT}{size}: the least that this model can be stored in is "
                f"{format_size(size - room + least)}; write {FIT}{size - room + least} or more"
            )
        shares = {**assumed_shares(model, plan, routes), **calibration.shares}
        rows = rows_of_each(blocks, open_)
        options = []
        progress.start("measuring what formats lose", sum(block.extent.length for block in blocks))
        try:
            for block, following in zip_longest(blocks, blocks[1:]):
                if following:
                    weights.expect(following)
                ways = WAYS[block.id.kind]
                errors = relative_errors(block, open_, ways, weights, calibration.importance, rows=rows)
                losses = [*(error * shares[block.id] for error in errors), 0.0]
                options.append(
                    [Option(way, sizes.of(block, way), loss) for way, loss in zip(_ways(block), losses, strict=True)]
                )
                progress.advance(block.extent.length)
        finally:
            progress.finish()
    for block, option in zip(blocks, fit(options, room), strict=True):
        way = option.name
        assert isinstance(way, Choice)
        for spec in block.tensors:
            if spec.name in open_ and way.format != AS_IS:
                key = spec.name if block.id.expert is None else (spec.name, block.id.expert)
                found[key] = replace(way, transposed=open_[spec.name].transposed)
    return found


def _ways(block: Block) -> tuple[Choice, ...]:
    return (*WAYS[block.id.kind], Choice(AS_IS))


def _fixed(plan: Layout, choices: Mapping[Key, Choice], weights: Weights, blocks: list[Block]) -> int:
    """Bytes of all but ``blocks``."""
    others = tuple(block for block in plan.blocks if block not in set(blocks))
    return encoded(Layout(others, {}), choices, EncodedWeights(weights).lengths)[0].total_bytes


class _Sizes:
    """Bytes that blocks take in one way or another; equal ones are looked at once."""

    def __init__(self, choices: Mapping[str, Choice]) -> None:
        self._choices = choices
        self._known: dict[object, int] = {}

    def of(self, block: Block, way: Choice) -> int:
        """With all matrices stored like that which can be."""
        if way.format == AS_IS:
            return block.extent.length
        shapes = tuple(
            (spec.dtype, spec.shape, spec.length, spec.offset % TENSOR_ALIGNMENT, spec.name.rpartition(".")[2])
            for spec in block.tensors
        )
        key = block.id.kind, shapes, way
        if key not in self._known:
            chosen: dict[Key, Choice] = {
                spec.name: replace(way, transposed=self._choices[spec.name].transposed)
                for spec in block.tensors
                if spec.name in self._choices
            }
            self._known[key] = encoded(Layout((block,), {}), chosen, _unknown)[0].total_bytes
        return self._known[key]


def _unknown(*_: object) -> Planes:
    raise AssertionError("formats to choose from know their lengths")
