"""Summaries of key pages: bounds that hold whatever the keys, are tight enough to be of use, alike in all kernels."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from penstock.kernels.kv.summaries import quantised_keys
from penstock.kernels.kv.summaries.base import Bounds, Summary
from penstock.kernels.kv.summaries.boxes import Boxes
from penstock.kernels.kv.summaries.quantised_keys import QuantisedKeys, rotate
from penstock.kernels.kv.summaries.registry import SUMMARIES
from penstock.kernels.kv.summaries.sketch import KeySketch
from penstock.kernels.native import RUNS, find_level

every = pytest.mark.parametrize("kind", SUMMARIES.values(), ids=SUMMARIES)
native = pytest.mark.skipif(not RUNS, reason="no compiler at installation")
KERNELS = ("torch", *RUNS)
kernels = pytest.mark.parametrize("kernel", KERNELS)
SHAPES = [(1, 1, 1, 16, 20), (2, 4, 1, 64, 32), (3, 1, 2, 16, 80), (1, 8, 3, 32, 64), (2, 1, 5, 256, 128)]
"""KV heads, query heads for each, rows, tokens, channels."""


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bounded(kind: Summary, query: torch.Tensor, keys: torch.Tensor, tokens: int, **more: Any) -> Bounds:
    """By summaries of ``keys`` [n, H, T, D], of a kind fitted to the first page."""
    fitted = kind.fit(keys[0])
    options = {"heads": keys.shape[1], "tokens": tokens, "scaling": keys.shape[-1] ** -0.5} | more
    return fitted.log_bounds(query, fitted.build(keys, tokens), **options)


def scored(query: torch.Tensor, keys: torch.Tensor, scaling: float, softcap: float | None) -> torch.Tensor:
    """Log-masses [Hq, R, n] in float64, of scores as eager attention computes them in the dtype of ``query``."""
    heads = keys.transpose(0, 1).repeat_interleave(len(query) // keys.shape[1], 0)  # [Hq, n, T, D]
    scores = torch.matmul(query[:, None], heads.to(query.dtype).mT) * scaling  # [Hq, n, R, T]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return scores.double().logsumexp(-1).mT


def by_kernel(kernel: str, bits: int, query: torch.Tensor, keys: torch.Tensor, tokens: int, **more: Any) -> Bounds:
    """``bounded`` by one level of the compiled kernels, or by torch, the reference of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantised_keys, "KERNELS", find_level(kernel))
        return bounded(QuantisedKeys(bits), query, keys, tokens, **more)


def holds(bounds: Bounds, masses: torch.Tensor) -> bool:
    """What is not finite was no number that attention could go on with."""
    inside = (bounds.lower <= masses) & (masses <= bounds.upper)
    return bool((inside | ~masses.isfinite()).all()) and not bool(torch.stack(list(bounds)).isnan().any())


def sample(shape: tuple[int, ...], form: str, generator: torch.Generator) -> torch.Tensor:
    numbers = torch.randn(shape, generator=generator)
    if form == "constant":
        numbers[:] = numbers.flatten()[0]
    elif form == "outliers":
        numbers[..., ::7] *= 50
    elif form == "two values":
        numbers = numbers.sign()
    elif form == "far from 0":
        numbers = numbers + 100 * torch.randn(shape[-1], generator=generator)
    elif form == "sparse":
        numbers *= torch.rand(shape, generator=generator) < 0.05
    return numbers


FORMS = st.sampled_from(["normal", "constant", "outliers", "two values", "far from 0", "sparse"])


@every
@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    forms=st.tuples(FORMS, FORMS),
    exponents=st.tuples(st.integers(-130, 126), st.integers(-130, 126))
    | st.tuples(st.integers(-4, 4), st.integers(-4, 4)),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    softcap=st.sampled_from([None, 30.0]),
    missing=st.integers(0, 15),
    seed=st.integers(0, 1 << 20),
)
def test_the_bounds_hold(
    kind: Summary,
    shape: tuple[int, int, int, int, int],
    forms: tuple[str, str],
    exponents: tuple[int, int],
    dtype: torch.dtype,
    softcap: float | None,
    missing: int,
    seed: int,
) -> None:
    """For scores without rounding and as they are computed; at every magnitude; of pages that are not full."""
    heads, groups, rows, tokens, dim = shape
    generator = chance(seed)
    keys = (sample((3, heads, tokens - missing, dim), forms[0], generator) * 2.0 ** exponents[0]).to(dtype)
    query = (sample((heads * groups, rows, dim), forms[1], generator) * 2.0 ** exponents[1]).to(dtype)
    assume(bool(keys.isfinite().all() and query.isfinite().all()))
    scaling = dim**-0.5
    bounds = bounded(kind, query, keys, tokens, softcap=softcap)
    assert holds(bounds, scored(query.double(), keys, scaling, softcap))
    assert holds(bounds, scored(query, keys, scaling, softcap))


@kernels
def test_a_softcap_hides_no_score_that_was_too_large(kernel: str) -> None:
    """For float32, in which a product of large numbers with opposite signs is -inf, and the cap makes -30 of it."""
    keys = (sample((3, 1, 15, 20), "normal", chance(1)) * 4).bfloat16()
    query = (sample((1, 1, 20), "outliers", chance(1)) * 2.0**120).bfloat16()
    bounds = by_kernel(kernel, 8, query, keys, 16, softcap=30.0)
    assert holds(bounds, scored(query.double(), keys, 20**-0.5, 30.0))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("there", "dim"), [(1, 20), (2, 20), (2, 12), (2, 8)])
def test_no_query_is_beyond_the_bounds(kind: Summary, dim: int, there: int, dtype: torch.dtype) -> None:
    """Of many in few dimensions, some point to where a summary is wrong: no part of its error can be spared."""
    rank = getattr(kind, "rank", 0)
    if rank >= dim:
        pytest.skip("it has no place for so few channels")
    fitted = kind.fit(torch.randn(1, 40, dim, generator=chance(0)))
    for seed in range(4):
        keys = torch.randn(1, 1, there, dim, generator=chance(seed)).to(dtype)
        query = (30 * torch.randn(1, 8192, dim, generator=chance(9 + seed))).to(dtype)
        bounds = fitted.log_bounds(query, fitted.build(keys, 16), heads=1, tokens=16, scaling=0.3)
        assert holds(bounds, scored(query.double(), keys, 0.3, None))
        assert holds(bounds, scored(query, keys, 0.3, None))


@every
def test_the_whole_softcap_is_used(kind: Summary) -> None:
    """Scores far beyond it are next to it, and the bounds with them."""
    keys = torch.full((1, 1, 16, 32), 9.0).bfloat16()
    bounds = bounded(kind, torch.full((1, 1, 32), 9.0).bfloat16(), keys, 16, softcap=20.0)
    assert bounds.upper.item() == pytest.approx(20 + math.log(16), rel=0.02)


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nothing_is_said_of_keys_that_are_no_numbers(kind: Summary, bad: float) -> None:
    keys = torch.randn(3, 2, 32, 64, generator=chance(0)).bfloat16()
    query = torch.randn(4, 1, 64, generator=chance(1)).bfloat16()
    wanted = bounded(kind, query, keys, 32)
    keys[1, 0, 31, 5] = bad
    found = bounded(kind, query, keys, 32)
    wanted.upper[:2, :, 1], wanted.lower[:2, :, 1] = math.inf, -math.inf
    assert torch.equal(found.upper, wanted.upper)
    assert torch.equal(found.lower, wanted.lower)


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_is_said_of_queries_that_are_no_numbers(kind: Summary, bad: float) -> None:
    query = torch.randn(2, 2, 64, generator=chance(1))
    query[1, 0, 3] = bad
    bounds = bounded(kind, query, torch.randn(2, 2, 32, 64, generator=chance(0)), 32)
    assert torch.equal(bounds.upper.isinf(), torch.tensor([[[False] * 2] * 2, [[True] * 2, [False] * 2]]))


@every
@pytest.mark.parametrize("there", [1, 17, 32])
def test_a_query_of_zeros_counts_tokens(kind: Summary, there: int) -> None:
    bounds = bounded(kind, torch.zeros(2, 1, 64), torch.randn(1, 2, there, 64, generator=chance(0)), 32)
    assert bounds.upper == pytest.approx(math.log(there), abs=1e-3)
    assert bounds.lower == pytest.approx(math.log(there), abs=1e-3)


@every
def test_queries_may_lie_as_attention_has_them(kind: Summary) -> None:
    """Tokens before heads."""
    keys = torch.randn(2, 2, 32, 64, generator=chance(0))
    query = torch.randn(3, 4, 64, generator=chance(1)).transpose(0, 1)
    found, wanted = bounded(kind, query, keys, 32), bounded(kind, query.contiguous(), keys, 32)
    assert torch.equal(found.upper, wanted.upper)


@every
def test_summaries_may_lie_in_a_larger_pool(kind: Summary) -> None:
    keys = torch.randn(3, 2, 32, 64, generator=chance(0)).bfloat16()
    query = torch.randn(4, 1, 64, generator=chance(1)).bfloat16()
    fitted = kind.fit(keys[0])
    summaries = fitted.build(keys)
    assert summaries.shape == (3, kind.page_bytes(2, 32, 64))
    pool = torch.full((8, summaries.shape[1] + 64), 255, dtype=torch.uint8)
    pool[2:5, : summaries.shape[1]] = summaries
    inside = pool[2:5, : summaries.shape[1]]
    options: dict[str, Any] = {"heads": 2, "tokens": 32, "scaling": 0.125}
    found, wanted = fitted.log_bounds(query, inside, **options), fitted.log_bounds(query, summaries, **options)
    assert torch.equal(found.upper, wanted.upper)
    assert torch.equal(found.lower, wanted.lower)


def test_the_bounds_are_as_tight_as_they_are_said_to_be() -> None:
    """Mean slack in nats: keys with a few main directions, scores with a standard deviation near 2."""
    generator = chance(0)
    directions = torch.randn(2, 8, 64, generator=generator)
    keys = torch.randn(6, 2, 64, 8, generator=generator) @ directions / 8**0.5
    keys = (keys + 0.2 * torch.randn(6, 2, 64, 64, generator=generator)).bfloat16()
    query = (2 * torch.randn(8, 1, 64, generator=generator)).bfloat16()
    true = scored(query.double(), keys, 0.125, None)
    slack = {name: float((bounded(kind, query, keys, 64).upper - true).mean()) for name, kind in SUMMARIES.items()}
    assert slack["int8"] < 0.25
    assert slack["int4"] < 2.5
    assert slack["int8"] < slack["int4"] < slack["boxes"]
    assert slack["sketch-16"] < slack["sketch-8"] < slack["boxes"] / 2


@native
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_equals_the_reference(
    shape: tuple[int, int, int, int, int], softcap: float | None, bits: int
) -> None:
    heads, groups, rows, tokens, dim = shape
    keys = torch.randn(20, heads, tokens - 3, dim, generator=chance(0)) * torch.linspace(0.1, 3, dim)
    query = torch.randn(heads * groups, rows, dim, generator=chance(1))
    found = {kernel: by_kernel(kernel, bits, query, keys, tokens, softcap=softcap) for kernel in KERNELS}
    for kernel in KERNELS[1:]:
        # They give the query fewer bits than the reference does, and may say a little less.
        assert (found[kernel].upper - found["torch"].upper).abs().max() < 0.05
        assert (found["torch"].lower - found[kernel].lower).abs().max() < 0.1
        assert torch.allclose(found[kernel].upper, found["plain"].upper, atol=1e-4)
        assert torch.allclose(found[kernel].lower, found["plain"].lower, atol=1e-4)


@kernels
@pytest.mark.parametrize(("bits", "largest"), [(8, 127 / 128), (4, 7 / 8)])
def test_what_the_numbers_of_a_query_leave_out_counts(bits: int, largest: float, kernel: str) -> None:
    """Keys that are whole numbers without an error, and a query whose every channel is rounded down by half a step."""
    key = rotate(torch.full((1, 8), largest))
    keys = torch.stack([key, -key]).view(1, 1, 2, 8)
    query = rotate(30 * torch.tensor([[16256, 2.49, 4.49, 8.49, 2.49, 6.49, 2.49, 2.49]]) / 16256)[None]
    assert holds(by_kernel(kernel, bits, query, keys, 16), scored(query.double(), keys, 8**-0.5, None))


@kernels
@pytest.mark.parametrize("bits", [8, 4])
def test_every_kernel_opens_the_bounds_of_what_is_no_number(bits: int, kernel: str) -> None:
    keys = torch.randn(2, 1, 16, 32, generator=chance(0))
    keys[1, 0, 3, 3] = math.nan
    query = torch.randn(3, 1, 32, generator=chance(1)) * torch.tensor([1.0, math.inf, 3e38])[:, None, None]
    upper = by_kernel(kernel, bits, query, keys, 16).upper[:, 0]
    assert torch.equal(upper.isinf(), torch.tensor([[False, True], [True, True], [True, True]]))


@kernels
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [-1, -(2**31), 33, 257, 10**6, 2**31 - 1])
def test_nothing_is_said_of_a_page_with_more_tokens_than_it_has(
    count: int, bits: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summaries of any bytes: the number of tokens led past the room for them."""
    monkeypatch.setattr(quantised_keys, "KERNELS", find_level(kernel))
    kind, tokens = QuantisedKeys(bits), 32
    made = kind.build(torch.randn(2, 1, tokens, 16, generator=chance(0)))
    made[1, :4] = torch.tensor([count], dtype=torch.int32).view(torch.uint8)
    made[1, 4:] = torch.randint(0, 256, (made.shape[1] - 4,), dtype=torch.uint8, generator=chance(1))
    query = torch.randn(3, 2, 16, generator=chance(2))
    found = kind.log_bounds(query, made, heads=1, tokens=tokens, scaling=1.0)
    assert bool(found.lower[..., 0].isfinite().all())
    assert bool((found.lower[..., 1] == -math.inf).all())
    assert bool((found.upper[..., 1] == math.inf).all())


def test_what_has_no_place_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        QuantisedKeys(8).page_bytes(2, 24, 64)
    with pytest.raises(ValueError, match="directions"):
        KeySketch(16).page_bytes(2, 16, 16)
    with pytest.raises(ValueError, match="`fit` returns"):
        KeySketch(8).build(torch.zeros(1, 1, 16, 32))
    assert Boxes().page_bytes(2, 24, 64) == 2 * (8 + 4 * 64)
