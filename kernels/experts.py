"""The products of some tokens with some experts, in the operations and the order of transformers' eager experts."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from .products import MOST_ROWS, Products, products

Activation = Callable[[torch.Tensor], torch.Tensor]

_AT_ONCE = 32768  # elements that torch's elementwise operations share out over threads, and then round otherwise


class Expert(NamedTuple):
    """``up`` is [inner, hidden] and ``down`` [hidden, inner'], or the transposes of these; biases are vectors."""

    up: torch.Tensor
    up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class Recipe(NamedTuple):
    """What a kind of experts does besides the products; ``activation`` takes [tokens, inner] to [tokens, inner']."""

    transposed: bool
    activation: Activation
    post: Activation | None


def expert_products(
    states: Sequence[torch.Tensor], experts: Sequence[Expert], recipe: Recipe
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """``expert_product`` of each of ``states`` [rows, hidden], contiguous, with its expert: several at a time.

    Yields positions in ``experts`` with their results [positions, rows, hidden]. Those of the same few rows are
    computed side by side, where there is such a product with the same bits.
    """
    by_rows: dict[int, list[int]] = {}
    for position, state in enumerate(states):
        by_rows.setdefault(len(state), []).append(position)
    for rows, positions in by_rows.items():
        up, down = _side_by_side(rows, experts[positions[0]], recipe)
        if up is not None and down is not None:
            several = [experts[position] for position in positions]
            yield positions, _several([states[position] for position in positions], several, up, down, recipe)
            continue
        for position in positions:
            yield [position], expert_product(states[position], experts[position], recipe)[None]


def expert_product(state: torch.Tensor, expert: Expert, recipe: Recipe) -> torch.Tensor:
    """``post(activation(state @ up) @ down)`` for ``state`` [tokens, hidden]; the result has its shape and dtype."""
    inner = recipe.activation(_linear(state, expert.up, expert.up_bias, recipe.transposed))
    out = _linear(inner, expert.down, expert.down_bias, recipe.transposed)
    return out if recipe.post is None else recipe.post(out)


def _linear(state: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    out = state @ weight if transposed else functional.linear(state, weight)
    return out if bias is None else out + bias


def _side_by_side(rows: int, expert: Expert, recipe: Recipe) -> tuple[Products | None, Products | None]:
    if rows > MOST_ROWS or recipe.transposed or expert.up_bias is not None or expert.down_bias is not None:
        return None, None
    if expert.up.dtype != torch.bfloat16 or expert.down.dtype != torch.bfloat16:
        return None, None
    return products(rows, *expert.up.shape), products(rows, *expert.down.shape)


def _several(
    states: Sequence[torch.Tensor], experts: Sequence[Expert], up: Products, down: Products, recipe: Recipe
) -> torch.Tensor:
    inner = up([expert.up.data_ptr() for expert in experts], [state.data_ptr() for state in states])
    if inner.numel() <= _AT_ONCE:
        active = recipe.activation(inner.view(-1, up.n)).contiguous().view(len(experts), up.rows, -1)
    else:
        active = torch.stack([recipe.activation(one) for one in inner])
    first, size = active.data_ptr(), 2 * down.rows * down.k
    out = down([expert.down.data_ptr() for expert in experts], range(first, first + len(experts) * size, size))
    return out if recipe.post is None else torch.stack([recipe.post(one) for one in out])
