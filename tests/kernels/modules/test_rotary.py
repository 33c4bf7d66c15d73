"""Rotary positions: bit for bit those of transformers' functions, at every level, or not at all."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from penstock.kernels.modules.rotary import Pair, Rotary, find_rotary, is_rotated, try_rotary
from penstock.kernels.native import RUNS, find_level

pytestmark = pytest.mark.levels
native = pytest.mark.skipif(not RUNS, reason="no compiler at installation")


def found(level: str, compute: object, heads: tuple[int, int], dim: int) -> Rotary | None:
    kernels = find_level(level)
    assert kernels is not None
    return try_rotary(compute, heads, dim, kernels)  # type: ignore[arg-type]


def numbers(heads: tuple[int, int], dim: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    chance = torch.Generator().manual_seed(seed)
    shapes = *((1, count, 1, dim) for count in heads), (1, 1, dim), (1, 1, dim)
    return tuple(torch.randn(shape, generator=chance).bfloat16() for shape in shapes)


@native
@pytest.mark.parametrize("level", RUNS)
@settings(max_examples=40, deadline=None)
@given(
    half=st.integers(1, 80),
    heads=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    exponent=st.integers(-120, 100),
    seed=st.integers(0, 1 << 20),
)
def test_equal_in_every_bit(level: str, half: int, heads: tuple[int, int], exponent: int, seed: int) -> None:
    rotary = found(level, apply_rotary_pos_emb, heads, 2 * half)
    assert rotary is not None, "other bits than torch's"
    query, key, cosines, sines = numbers(heads, 2 * half, seed)
    query, key = (query.double() * 2.0**exponent).bfloat16(), (key.double() * 2.0**-exponent).bfloat16()
    wanted = apply_rotary_pos_emb(query, key, cosines, sines)
    for ours, theirs in zip(rotary(query, key, cosines, sines), wanted, strict=True):
        assert torch.equal(ours.view(torch.int16), theirs.contiguous().view(torch.int16))


@native
@pytest.mark.parametrize("model", ["cohere", "glm", "gpt_oss"])
def test_functions_that_compute_something_else(model: str) -> None:
    """One rotates neighbours, one a part of each head, one takes half as many cosines."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    assert found(RUNS[-1], module.apply_rotary_pos_emb, (4, 2), 64) is None


@native
def test_a_function_that_differs_in_one_rounding() -> None:
    def wide(query: torch.Tensor, key: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> Pair:
        query, key = apply_rotary_pos_emb(*(each.float() for each in (query, key, cosines, sines)))
        return query.bfloat16(), key.bfloat16()

    assert found(RUNS[-1], wide, (4, 2), 64) is None
    assert find_rotary(lambda *given: given[:2], (4, 2), 64) is None


def test_what_it_takes() -> None:
    query, key, cosines, sines = numbers((4, 2), 64)
    assert is_rotated(query, key, cosines, sines)
    twice = numbers((4, 2), 128)[0][..., ::2]
    for others in (
        (query.float(), key, cosines, sines),
        (query, key[..., :32], cosines, sines),
        (query, key, cosines[..., :32], sines),
        (query.expand(2, 4, 1, 64), key, cosines, sines),
        (query.expand(1, 4, 3, 64), key, cosines, sines),
        (twice, key, cosines, sines),
        (query[0], key, cosines, sines),
        (query, key, cosines.to("meta"), sines),
        (query.repeat(1, 200, 1, 1), key, cosines, sines),
    ):
        assert not is_rotated(*others)
