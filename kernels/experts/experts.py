"""Products of some tokens with some experts, in the operations and the order of transformers' eager experts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ..products.few_rows import MOST_ROWS, find_product
from ..products.row_parts import BIT_TRIALS, divide_rows, parts_keep_bits
from ..weights.packed_weight import Many, PackedWeight, find_products

Activation = Callable[[torch.Tensor], torch.Tensor]
Form = tuple[str, str]
"""Formats of an expert's two matrices."""

_AT_ONCE = 32768  # elements from which torch divides elementwise operations between threads, with other rounding
_ROUND = 16


class Expert(NamedTuple):
    """An expert's weights: ``up`` is [inner, hidden] and ``down`` [hidden, inner'], or their transposes.

    Biases are vectors.
    """

    up: torch.Tensor
    up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class Recipe(NamedTuple):
    """An expert's steps besides the products. ``activation`` maps [tokens, inner] to [tokens, inner']."""

    transposed: bool
    activation: Activation
    post: Activation | None


def compute_experts(
    states: Sequence[torch.Tensor], experts: Sequence[Expert], recipe: Recipe
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Compute ``compute_expert`` of each of ``states`` [rows, hidden], contiguous, with its expert, several at a time.

    Yields positions in ``experts`` with their results [positions, rows, hidden]. Experts with the same few rows are
    computed in one call, where such a product has the same bits.
    """
    alike: dict[tuple[int, Form], list[int]] = {}
    for position, state in enumerate(states):
        alike.setdefault((len(state), find_form(experts[position])), []).append(position)
    for (rows, _), positions in alike.items():
        several = find_side_by_side(rows, experts[positions[0]], recipe)
        if several is not None:
            addresses = [states[position].data_ptr() for position in positions]
            yield positions, several(addresses, [experts[position] for position in positions], recipe)
            continue
        for position in positions:
            yield [position], _rounded(states[position], experts[position], recipe)[None]


def compute_outputs(
    hidden: torch.Tensor, rows: Sequence[torch.Tensor], experts: Sequence[Expert], recipe: Recipe
) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Compute ``compute_expert`` of ``hidden`` [tokens, width] at ``rows``, row numbers for each of ``experts``.

    ``hidden`` is contiguous. Yields positions in ``experts``, parts of their rows in order, and the results [rows,
    width]. All parts of an expert come before the next expert. Long ones are computed in parts, the others as by
    ``compute_experts``.
    """
    few: list[int] = []
    for position, expert in enumerate(experts):
        several = divide_expert(hidden, rows[position], expert, recipe)
        if len(several) == 1:
            few.append(position)
            continue
        for part in several:
            for _, out in compute_experts([hidden[rows[position][part]]], [expert], recipe):
                yield position, part, out[0]
    states = [hidden[rows[position]] for position in few]
    for positions, outs in compute_experts(states, [experts[position] for position in few], recipe):
        for position, out in zip(positions, outs, strict=True):
            yield few[position], slice(None), out


def find_form(expert: Expert) -> Form:
    """Return the formats of the expert's matrices, "" for a plain one.

    Experts of equal form are computed in one call, each with the planes that it has.
    """
    up, down = (weight.format.name if isinstance(weight, PackedWeight) else "" for weight in (expert.up, expert.down))
    return up, down


def compute_expert(state: torch.Tensor, expert: Expert, recipe: Recipe) -> torch.Tensor:
    """Compute ``post(activation(state @ up) @ down)`` for ``state`` [tokens, hidden].

    The result has its shape and dtype.
    """
    out = _linear(compute_inner(state, expert, recipe), expert.down, expert.down_bias, recipe.transposed)
    return out if recipe.post is None else recipe.post(out)


def compute_inner(state: torch.Tensor, expert: Expert, recipe: Recipe) -> torch.Tensor:
    """Compute the input of the expert's second matrix for ``state`` [tokens, hidden]."""
    return recipe.activation(_linear(state, expert.up, expert.up_bias, recipe.transposed))


def divide_expert(hidden: torch.Tensor, rows: torch.Tensor, expert: Expert, recipe: Recipe) -> list[slice]:
    """Divide ``rows``, row numbers of ``hidden`` [tokens, width], into the smallest parts that give the same bits."""
    kind = _kind(recipe.activation)
    whole = [slice(0, len(rows))]
    if kind is None or (several := divide_rows(len(rows))) == whole:
        return whole

    def compute(state: torch.Tensor) -> torch.Tensor:
        return compute_expert(state, expert, recipe)

    def sample(count: int) -> torch.Tensor:
        return hidden[rows[:count]]

    widths = {*expert.up.shape, *expert.down.shape}
    kind = f"{_shapes(expert, recipe)}, {kind}"
    return several if parts_keep_bits(compute, sample, len(rows), kind, widths) else whole


def _rounded(state: torch.Tensor, expert: Expert, recipe: Recipe) -> torch.Tensor:
    """Compute ``compute_expert`` with rows padded to a round number, where that gives the same bits.

    The library under torch compiles a kernel for every number of rows, and a prompt gives every expert another number.
    A trial, on the first use of each number of rows, shows whether the padding changes the other rows.
    """
    rows = len(state)
    missing, kind = -rows % _ROUND, _kind(recipe.activation)
    if not missing or rows <= MOST_ROWS or kind is None:
        return compute_expert(state, expert, recipe)
    key = f"{rows} rows, {_shapes(expert, recipe)}, {kind}, {torch.get_num_threads()} threads"
    equal = BIT_TRIALS.get(key)
    if equal is False:
        return compute_expert(state, expert, recipe)
    out = compute_expert(functional.pad(state, (0, 0, 0, missing)), expert, recipe)[:rows]
    if equal is None:
        exact = compute_expert(state, expert, recipe)
        if bool((exact != exact[:, :1]).any(1).all()):  # equal numbers would show no order of summation
            BIT_TRIALS[key] = torch.equal(out, exact)
        return exact
    return out


def _shapes(expert: Expert, recipe: Recipe) -> str:
    transposed = "transposed " * recipe.transposed
    biased = "biased " * (expert.up_bias is not None or expert.down_bias is not None)
    formats = "".join(f"{name} " for name in find_form(expert) if name)
    return f"{tuple(expert.up.shape)} {tuple(expert.down.shape)} {formats}{transposed}{biased}{expert.up.dtype}"


def _kind(activation: Activation) -> str | None:
    """Return the name of the activation. None if it has none of its own."""
    kind: Any = type(activation) if isinstance(activation, torch.nn.Module) else activation
    name = getattr(kind, "__qualname__", "<")
    if "<" in name:
        return None
    # A gate is a method of the experts module. It applies the function that the configuration names.
    inner = _kind(gated) if callable(gated := getattr(getattr(kind, "__self__", None), "act_fn", None)) else ""
    return None if inner is None else f"{kind.__module__}.{name}{inner and f'({inner})'}"


def _linear(state: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    out = state @ weight if transposed else functional.linear(state, weight)
    return out if bias is None else out + bias


class SideBySide(NamedTuple):
    """Products of ``rows`` rows with several experts of one shape and format at a time."""

    rows: int
    up: Many
    down: Many

    def __call__(self, states: Sequence[int], experts: Sequence[Expert], recipe: Recipe) -> torch.Tensor:
        """Compute ``compute_expert`` of the states at addresses ``states`` with each expert.

        Returns [experts, rows, hidden].
        """
        inner = self.up([expert.up for expert in experts], states)
        flat = inner.flatten(0, 1)
        if inner.numel() <= _AT_ONCE:
            active = recipe.activation(flat).contiguous()
        else:
            active = torch.cat([*map(recipe.activation, torch.split(flat, max(1, _AT_ONCE // inner.shape[-1])))])
        first, size = active.data_ptr(), active.nbytes // len(experts)
        out = self.down([expert.down for expert in experts], range(first, first + len(experts) * size, size))
        return out if recipe.post is None else torch.stack([recipe.post(one) for one in out])


def find_side_by_side(rows: int, expert: Expert, recipe: Recipe) -> SideBySide | None:
    """Find products of ``rows`` rows with experts shaped like ``expert``. None if none have the same bits."""
    if recipe.transposed or expert.up_bias is not None or expert.down_bias is not None:
        return None
    up, down = _many(rows, expert.up), _many(rows, expert.down)
    return SideBySide(rows, up, down) if up is not None and down is not None else None


def _many(rows: int, weight: torch.Tensor) -> Many | None:
    if weight.dtype != torch.bfloat16:
        return None
    if isinstance(weight, PackedWeight):
        return find_products(weight, rows)
    product = find_product(rows, *weight.shape) if rows <= MOST_ROWS and weight.is_cpu else None
    if product is None:
        return None
    return lambda weights, inputs: product([weight.data_ptr() for weight in weights], inputs)
