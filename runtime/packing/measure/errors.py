"""The loss of storing a matrix in a format: the error of its outputs, by their share of what the model computes.

The error is that of some rows, encoded as all would be: its square relative to theirs, each column by ``importance``.
The share says how much a module adds to the hidden states that its layer gives on: a relative error of the one is, in
that proportion, one of the other, and later layers pass it on as they normalise what they take. On small models, the
divergence from the original is the product of both times 0.3 to 0.9, for all modules and formats.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from ....kernels.formats.base import UnsuitableShape
from ....kernels.formats.registry import ENCODING
from ....tiering.errors import CheckpointError
from ....tiering.store.bundle.manifest import Block, TensorSpec
from ...checkpoints.weights import WeightReader
from ..arrange.formats import Choice, Key, of_matrix, shape_of
from ..stream.encoding import split_slabs

MOST_ROWS = 64
"""Rows of a matrix that are encoded to measure the error, at most."""
LEAST_ROWS = 4
SAMPLE = 1 << 25
"""Numbers of all matrices together that are encoded in each format; more only where LEAST_ROWS are."""


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
    weights: WeightReader,
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
                ENCODING[way.format].lengths(*shape_of(spec, choice))
                totals[number] += _error(sample, way, counts)
            except UnsuitableShape:
                continue
            except ValueError as error:
                raise CheckpointError(
                    f"{spec.name} cannot be stored in a chosen format: {error}; store this part as-is or lossless"
                ) from error
    return totals


def _sample(spec: TensorSpec, choice: Choice, weights: WeightReader, expert: int | None, count: int) -> torch.Tensor:
    """``count`` rows of the matrix that would be encoded, or all, spread over it by chance."""
    n, _ = shape_of(spec, choice)
    wanted = torch.randperm(n, generator=torch.Generator().manual_seed(n))[:count].sort().values
    parts, first = [], 0
    for slab in split_slabs(weights.pieces(spec, expert), spec, choice):
        here = wanted[(wanted >= first) & (wanted < first + len(slab))]
        parts.append(slab[here - first].clone())
        first += len(slab)
    return torch.cat(parts)


def _error(rows: torch.Tensor, way: Choice, importance: torch.Tensor | None) -> float:
    n, k = rows.shape
    format_ = ENCODING[way.format]
    planes = format_.encode([rows], n, k, importance)[: way.planes]
    found = torch.empty_like(rows)
    format_.decode(planes, n, k, slice(0, n), found)
    wanted = rows.float()
    errors, squares = (found.float() - wanted).square_(), wanted.square()
    if importance is not None:
        errors, squares = errors * importance, squares * importance
    total = squares.sum().item()
    return errors.sum().item() / total if total else 0.0
