"""Groups the experts of a few tokens into calls: experts of one form with as many rows each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...kernels.experts.experts import Expert, Form, find_form

Choices = list[list[tuple[int, float]]]
"""For each token its experts, ascending, with their weights."""


class Call(NamedTuple):
    """An expert, with tokens that it is computed for."""

    number: int
    expert: Expert
    tokens: Sequence[int]


def choices_of(index: torch.Tensor, weights: torch.Tensor, experts: int) -> Choices:
    """Return the choices in ``index`` and ``weights`` [tokens, top_k]. Entries >= ``experts`` mean "no expert"."""
    pairs = zip(index.tolist(), weights.tolist(), strict=True)
    return [
        sorted(pair for pair in zip(numbers, shares, strict=True) if pair[0] < experts) for numbers, shares in pairs
    ]


def users_of(chosen: Choices) -> dict[int, list[int]]:
    """Return the tokens of each expert."""
    users: dict[int, list[int]] = {}
    for token, pairs in enumerate(chosen):
        for expert, _ in pairs:
            users.setdefault(expert, []).append(token)
    return users


def alike(
    experts: Sequence[tuple[int, Expert]], users: dict[int, list[int]], most: int
) -> dict[tuple[Form, int], list[Call]]:
    """Group ``experts`` by their form and their number of tokens, at most ``most`` for a call."""
    found: dict[tuple[Form, int], list[Call]] = {}
    for number, expert in experts:
        tokens = users[number]
        for first in range(0, len(tokens), most):
            call = Call(number, expert, tokens[first : first + most])
            found.setdefault((find_form(expert), len(call.tokens)), []).append(call)
    return found
