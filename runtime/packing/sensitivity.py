"""What is lost by storing a matrix in a format: the error of its outputs, by their share of what the model computes.

The error is that of some rows, encoded as all would be: its square relative to theirs, each column by ``importance``.
The share says how much a module adds to the hidden states that its layer gives on: a relative error of the one is, in
that proportion, one of the other, and later layers pass it on as they normalise what they take. On small models, the
divergence from the original is the product of both times 0.3 to 0.9, for all modules and formats.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ...kernels.formats.base import UnsuitableShape
from ...kernels.formats.registry import FORMATS
from ...tiering.errors import CheckpointError
from ...tiering.store.bundle.manifest import Block, TensorSpec
from ...tiering.units import BlockId
from ..checkpoints.layout import Layout, layer_of
from ..checkpoints.weights import Weights
from ..routing.routes import Routes
from .encoding import shape_of, slabs
from .formats import Choice, Key, of_matrix

MOST_ROWS = 64
"""Of a matrix, that are encoded to see what is lost."""
LEAST_ROWS = 4
SAMPLE = 1 << 25
"""Numbers of all matrices together that are encoded in each format; more only where LEAST_ROWS are."""
OTHERWISE = 0.1
"""How much of an expert's share is that of all alike: the next text uses others than the one that was measured."""


def rows_of_each(blocks: Iterable[Block], choices: Mapping[str, Choice]) -> int:
    """How many rows of each matrix in ``choices`` are encoded."""
    columns = sum(
        shape_of(spec, choices[spec.name])[1] for block in blocks for spec in block.tensors if spec.name in choices
    )
    return max(LEAST_ROWS, min(MOST_ROWS, SAMPLE // max(1, columns)))


def relative_errors(
    block: Block,
    choices: Mapping[str, Choice],
    ways: Sequence[Choice],
    weights: Weights,
    importance: Mapping[Key, torch.Tensor],
    *,
    rows: int,
) -> list[float]:
    """The summed squared errors of the block's matrices in ``choices``, relative to their squares, stored in each of
    ``ways``; 0 where a matrix stays as it is. Raises CheckpointError for numbers that a format cannot have."""
    totals = [0.0] * len(ways)
    for spec in block.tensors:
        if (choice := choices.get(spec.name)) is None:
            continue
        sample = _sample(spec, choice, weights, block.id.expert, rows)
        counts = of_matrix(importance, spec.name, block.id.expert)
        for number, way in enumerate(ways):
            try:
                FORMATS[way.format].lengths(*shape_of(spec, choice))
                totals[number] += _error(sample, way, counts)
            except UnsuitableShape:
                continue
            except ValueError as error:
                raise CheckpointError(
                    f"{spec.name} cannot be stored in a chosen format: {error}; store this part as-is or lossless"
                ) from error
    return totals


def _sample(spec: TensorSpec, choice: Choice, weights: Weights, expert: int | None, count: int) -> torch.Tensor:
    """``count`` rows of the matrix that would be encoded, or all, spread over it by chance."""
    n, _ = shape_of(spec, choice)
    wanted = torch.randperm(n, generator=torch.Generator().manual_seed(n))[:count].sort().values
    parts, first = [], 0
    for slab in slabs(weights.pieces(spec, expert), spec, choice):
        here = wanted[(wanted >= first) & (wanted < first + len(slab))]
        parts.append(slab[here - first].clone())
        first += len(slab)
    return torch.cat(parts)


def _error(rows: torch.Tensor, way: Choice, importance: torch.Tensor | None) -> float:
    n, k = rows.shape
    format_ = FORMATS[way.format]
    planes = format_.encode([rows], n, k, importance)[: way.planes]
    found = torch.empty_like(rows)
    format_.decode(planes, n, k, slice(0, n), found)
    wanted = rows.float()
    errors, squares = (found.float() - wanted).square_(), wanted.square()
    if importance is not None:
        errors, squares = errors * importance, squares * importance
    total = squares.sum().item()
    return errors.sum().item() / total if total else 0.0


def assumed_shares(model: nn.Module, plan: Layout, routes: Routes | None) -> dict[BlockId, float]:
    """The share of each block in ``plan`` of ``model`` where nothing was measured but, perhaps, ``routes``.

    Two modules of a layer add to what came out of the layers before, all of them alike: of layer l, from 0, each is one
    part in 2 l + 3. What is outside of layers has all, once for each of its uses.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[str, int] = {}
    uses = _uses(routes)
    shares = {}
    for block in plan.blocks:
        layer = layer_of(block.id.module, modules) if block.id.module else None
        if layer is None:
            names = {spec.name for spec in block.tensors}
            shares[block.id] = 1.0 + sum(stored in names for stored in plan.tied.values())
            continue
        share = 1 / (2 * layers.setdefault(layer, len(layers)) + 3)
        if block.id.kind == "expert":
            count = int(modules[block.id.module].num_experts)
            share *= expert_share(uses.get(block.id.module, torch.ones(count)), block.id.part)
        shares[block.id] = share
    return shares


def expert_share(uses: torch.Tensor, expert: int) -> float:
    """What ``expert`` has of its layer, by ``uses`` [experts], the weights of all experts in some text."""
    total = uses.sum().item()
    measured = uses[expert].item() / total if total else 1 / len(uses)
    return (1 - OTHERWISE) * measured + OTHERWISE / len(uses)


def _uses(routes: Routes | None) -> dict[str, torch.Tensor]:
    """How many tokens used each expert, by module path."""
    return {layer.path: torch.from_numpy(layer.used().sum(0)).double() for layer in routes.layers} if routes else {}
