"""Experts of one arena, computed together."""

import pytest
import torch
from torch.nn import functional

from penstock.kernels.experts.experts import Expert, Recipe, compute_expert
from penstock.kernels.experts.grouped_cuda import group_experts
from penstock.kernels.formats.int8 import Int8
from penstock.kernels.formats.registry import FORMATS
from penstock.kernels.weights.packed_weight import PackedWeight
from tests.support.on_device import chance, on_device

HIDDEN, INNER, ROWS = 64, 48, (1, 3, 2)


def gate(up: torch.Tensor) -> torch.Tensor:
    first, second = up.chunk(2, -1)
    return functional.silu(first) * second


RECIPE = Recipe(transposed=False, activation=gate, post=None)


def experts_in(arena: torch.Tensor, *, packed: bool) -> list[Expert]:
    """Three experts, in another order than they are used, each at a multiple of 64 bytes of ``arena``."""
    made: list[Expert] = []
    end = 64
    for number in (2, 0, 1):
        matrices: list[torch.Tensor] = []
        for n, k in ((2 * INNER, HIDDEN), (HIDDEN, INNER)):
            matrix = chance(n, k, seed=10 * number + n) / 8
            plane = Int8().encode([matrix], n, k)[0] if packed else matrix.contiguous().view(torch.uint8).flatten()
            place = arena[end : end + len(plane)]
            place.copy_(plane)
            end += -(-len(plane) // 64) * 64 + 64
            shown: torch.Tensor = (
                place.view(torch.bfloat16).view(n, k)
                if not packed
                else PackedWeight([place], FORMATS["int8"], (n, k), torch.bfloat16)
            )
            matrices.append(shown)
        made.append(Expert(matrices[0], None, matrices[1], None))
    return made[1:] + made[:1]


@on_device
@pytest.mark.parametrize("packed", [False, True], ids=["bfloat16", "int8"])
def test_each_expert_gives_what_it_gives_alone(packed: bool, device: str) -> None:
    here = torch.empty(1 << 17, dtype=torch.uint8)
    experts = experts_in(here, packed=packed)
    states = [chance(rows, HIDDEN, seed=rows) for rows in ROWS]
    exact = []
    for state, expert in zip(states, experts, strict=True):
        plain = [w.decoded().detach() if isinstance(w, PackedWeight) else w for w in (expert.up, expert.down)]
        exact.append(compute_expert(state.float(), Expert(plain[0].float(), None, plain[1].float(), None), RECIPE))
    if device != "cpu":
        experts = experts_in(torch.empty(1 << 17, dtype=torch.uint8, device=device), packed=packed)
    found = group_experts([state.to(device) for state in states], experts, RECIPE)
    assert found is not None
    for out, wanted in zip(found, exact, strict=True):
        assert out.shape == wanted.shape
        # Three roundings to bfloat16 lie between, each of half its last bit, of numbers as large as the largest.
        assert (out.cpu().float() - wanted).abs().max() <= 3 * 2**-8 * wanted.abs().max()


def test_what_is_not_alike_is_left_to_others() -> None:
    here = torch.empty(1 << 17, dtype=torch.uint8)
    experts, states = experts_in(here, packed=False), [chance(rows, HIDDEN) for rows in ROWS]
    assert group_experts(states, experts, RECIPE._replace(transposed=True)) is None
    biased = experts[0]._replace(up_bias=torch.zeros(2 * INNER, dtype=torch.bfloat16))
    assert group_experts(states, [biased, *experts[1:]], RECIPE) is None
    assert (
        group_experts(
            states, [*experts[:2], experts_in(torch.empty(1 << 17, dtype=torch.uint8), packed=True)[2]], RECIPE
        )
        is None
    )
    assert group_experts([state.float() for state in states], experts, RECIPE) is None
