"""Bit-nested weights: all planes are the numbers of int8, fewer are nearly as good as a format of so many bits."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from penstock.kernels.formats import nested, quantise
from penstock.kernels.formats.base import SLAB
from penstock.kernels.formats.int4 import Int4
from penstock.kernels.formats.int8 import Int8
from penstock.kernels.formats.nested import NESTED, STACKED, BitNested
from penstock.kernels.formats.steps import GROUP, LEFT, nest, scale_codes
from penstock.kernels.native import RUNS, find_level
from tests.kernels.formats.test_contract import SHAPES, addresses, decoded, encoded, matrix
from tests.support.levels import held_to, levels

CHECKPOINT = Path(__file__).parents[3] / "examples" / "tiny-moe" / "model.safetensors"
both = pytest.mark.parametrize("weights", [NESTED, STACKED], ids=lambda weights: weights.name)


def heavy_tailed(n: int, k: int) -> torch.Tensor:
    """Of Student's t-distribution with 3 degrees of freedom; a few columns are 20 times as large."""
    normal = matrix(n, 4 * k, 3).float().view(4, n, k)
    numbers = normal[0] / (normal[1:].square().sum(0) / 3).sqrt()
    numbers[:, ::97] *= 20
    return numbers.bfloat16()


def trained(name: str) -> torch.Tensor:
    with safe_open(str(CHECKPOINT), "pt") as file:
        whole: torch.Tensor = file.get_tensor(f"model.layers.0.{name}.weight")
    return whole


MATRICES = {
    "gaussian": matrix(192, 512),
    "heavy-tailed": heavy_tailed(192, 512),
    "two ends": torch.where(matrix(128, 320) > 0, 1.0, -1.0) + 0.01 * matrix(128, 320, 1),
    "narrow groups": matrix(64, 320) * torch.tensor([1.0, 0.01, 0.1, 0.001, 0.03]).repeat_interleave(64),
    "down": trained("mlp.experts.3.down_proj"),
    "up": trained("mlp.experts.5.up_proj"),
    "query": trained("self_attn.q_proj"),
}
matrices = pytest.mark.parametrize("whole", MATRICES.values(), ids=MATRICES)
alike = pytest.mark.parametrize("name", ["gaussian", "heavy-tailed", "down", "up", "query"])


def error(weights: BitNested | Int4, whole: torch.Tensor, count: int = 1) -> float:
    """Of the first planes, in squares."""
    found = decoded(weights, encoded(weights, whole)[:count], *whole.shape, torch.float32)
    return float((found - whole.float()).square().sum())


@both
@matrices
@pytest.mark.parametrize("important", [False, True])
def test_all_planes_are_the_numbers_of_int8(weights: BitNested, whole: torch.Tensor, important: bool) -> None:
    n, k = whole.shape
    importance = torch.rand(k, generator=torch.Generator().manual_seed(2)) if important else None
    wanted = decoded(Int8(), Int8().encode(whole.split(SLAB), n, k, importance), n, k, torch.float32)
    planes = weights.encode(whole.split(SLAB), n, k, importance)
    assert torch.equal(decoded(weights, planes, n, k, torch.float32), wanted)


@matrices
def test_two_planes_of_stacked_are_the_first_of_nested(whole: torch.Tensor) -> None:
    base, two = encoded(NESTED, whole)[:1], encoded(STACKED, whole)[:2]
    assert torch.equal(decoded(STACKED, two, *whole.shape), decoded(NESTED, base, *whole.shape))


@alike
def test_the_first_plane_of_nested_is_as_good_as_4_bits(name: str) -> None:
    """Int4 has finer scales and zeros, of 5 bits per weight in all; here it is 4.5."""
    most = 1.25 if name == "heavy-tailed" else 1.12
    assert error(NESTED, MATRICES[name]) <= most * error(Int4(32), MATRICES[name])


@alike
def test_the_first_plane_of_stacked_is_nearly_as_good_as_2_bits(name: str) -> None:
    """The best four equally distant numbers for each group, without any rounding of theirs."""
    whole = MATRICES[name]
    filler = -whole.shape[1] % GROUP
    groups = torch.cat((whole, whole[:, -1:].expand(-1, filler)), 1).float().unflatten(1, (-1, GROUP))
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best = torch.full_like(least, torch.inf)
    for part in torch.arange(0.4, 1.01, 0.1):
        for place in torch.arange(0, 1.01, 0.25):
            step = (part * (most - least) / 3).clamp(min=1e-9)
            start = least + place * (1 - part) * (most - least)
            apart = start + step * ((groups - start) / step).round().clamp(0, 3) - groups
            best = torch.minimum(best, apart.square().mean(-1, keepdim=True))
    columns = torch.full((len(best[0]),), GROUP)
    columns[-1] -= filler
    assert error(STACKED, whole) <= 1.35 * float((best[..., 0] * columns).sum())


@both
@alike
def test_each_plane_makes_it_finer(weights: BitNested, name: str) -> None:
    errors = [error(weights, MATRICES[name], count) for count in range(1, weights.planes + 1)]
    assert all(after < before / 3 for before, after in pairwise(errors))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([-127, -126, -119, -64, -1, 0, 1, 5, 90, 120, 127]), min_size=3, max_size=96),
    st.floats(-0.5, 0.5, width=32),
    st.sampled_from([0.0, 1.0]),
)
def test_whatever_the_integers_are_they_can_be_made_up(ends: list[int], off: float, important: float) -> None:
    integers = torch.tensor([ends, ends[::-1]]).float()
    numbers = nest(integers + off, integers, torch.ones(2), torch.arange(float(len(ends))) * important)
    assert numbers.codes.amin() >= 0
    assert numbers.codes.amax() <= 15
    assert numbers.left.amin() >= -LEFT
    assert numbers.left.amax() < LEFT
    assert numbers.steps.amin() >= 1
    assert numbers.steps.amax() <= 255
    assert numbers.offsets.amin() >= -128
    assert numbers.offsets.amax() <= 127
    found = scale_codes(numbers.steps, numbers.codes) + numbers.offsets + numbers.left
    assert torch.equal(found.permute(1, 2, 0).flatten(1)[:, : len(ends)], integers)


def test_important_columns_are_nearer() -> None:
    whole = matrix(128, 256)
    importance = torch.ones(256)
    importance[::8] = 100
    found = [
        decoded(NESTED, NESTED.encode(whole.split(SLAB), 128, 256, counts)[:1], 128, 256)[:, ::8]
        for counts in (None, importance)
    ]
    apart = [float((numbers.float() - whole[:, ::8].float()).square().sum()) for numbers in found]
    assert apart[1] < 0.9 * apart[0]


def test_bytes_per_weight() -> None:
    n = k = 1024
    assert [8 * length / n / k for length in NESTED.lengths(n, k)] == pytest.approx([4.5, 4], abs=0.04)
    assert [8 * length / n / k for length in STACKED.lengths(n, k)] == pytest.approx([2.625, 2, 4], abs=0.04)


@levels
@both
@pytest.mark.parametrize("shape", [*SHAPES, (17, 8), (33, 41), (1, 1)], ids=str)
def test_every_level_decodes_the_same_bits(weights: BitNested, shape: tuple[int, int], level: str) -> None:
    whole = heavy_tailed(*shape)
    planes = encoded(weights, whole)
    few = [planes[:count] for count in range(1, weights.planes + 1)]
    with held_to(None):
        slow = [decoded(weights, some, *shape) for some in few]
        assert weights.find_product(1, *shape) is None
    with held_to(level):
        for some, wanted in zip(few, slow, strict=True):
            assert torch.equal(decoded(weights, some, *shape), wanted)


@pytest.mark.parametrize("level", RUNS)
@both
@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 100), st.integers(1, 300)),
    st.sampled_from([1e-39, 1e-30, 0.02, 1e30]),
    st.booleans(),
    st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_the_portable_way_encodes_the_same_bits(
    level: str, weights: BitNested, shape: tuple[int, int], size: float, important: bool, dtype: torch.dtype
) -> None:
    whole = (heavy_tailed(*shape).float() * size).clamp(-3e38, 3e38).to(dtype)
    whole[len(whole) // 2] = 0
    importance = torch.rand(shape[1], generator=torch.Generator().manual_seed(2)) if important else None
    with pytest.MonkeyPatch.context() as patch:
        for module in (nested, quantise):
            patch.setattr(module, "KERNELS", find_level(level))
        compiled = weights.encode(whole.split(SLAB), *shape, importance)
        for module in (nested, quantise):
            patch.setattr(module, "KERNELS", None)
        portable = weights.encode(whole.split(SLAB), *shape, importance)
    assert all(torch.equal(one, other) for one, other in zip(compiled, portable, strict=True))


@levels
@both
@settings(max_examples=40, deadline=None)
@given(st.integers(1, nested.MOST_ROWS), st.integers(1, 100), st.integers(1, 300), st.data())
def test_a_call_takes_matrices_with_different_numbers_of_planes(
    weights: BitNested, level: str, rows: int, n: int, k: int, data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(1, weights.planes), min_size=1, max_size=5))
    planes = [encoded(weights, matrix(n, k, i))[:count] for i, count in enumerate(counts)]
    inputs = [matrix(rows, k, 100 + i) for i in range(len(counts))]
    with held_to(level):
        product = weights.find_product(rows, n, k)
        assert product is not None
        found = product([addresses(some) for some in planes], addresses(inputs))
    for out, some, state in zip(found.double(), planes, inputs, strict=True):
        numbers = decoded(weights, some, n, k, torch.float32).double()
        wanted, sizes = state.double() @ numbers.T, state.double().abs() @ numbers.abs().T
        assert ((out - wanted).abs() <= 2**-8 * wanted.abs() + 1e-5 * sizes).all()
