"""What every KV format keeps to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.formats import quantise
from penstock.kernels.kv.base import KVFormat, PageShape
from penstock.kernels.kv.registry import FORMATS
from tests.support.kv_pages import Pages, decoded, pages_of, random

ERRORS = {"int8": 0.006, "int4": 0.08}
"""Of the norm of Gaussian numbers, at most; for each format that is not exact."""

DTYPES = [torch.bfloat16, torch.float32, torch.float16]
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float16: 2.0**-11}
"""What it changes a number by, as a fraction of it, at most."""

formats = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
planes = pytest.mark.parametrize("keys", [True, False], ids=["keys", "values"])

shapes = st.tuples(
    st.integers(1, 3),  # heads
    st.integers(1, 3),  # query heads of each
    st.integers(1, 4),  # rows
    st.sampled_from([16, 32, 64]),  # tokens of a page
    st.sampled_from([32, 64, 80, 128]),  # dim
    st.integers(1, 150),  # tokens
)


def scored(
    format_: KVFormat, query: torch.Tensor, pages: Pages, scaling: float, tokens: int, runs: int = 0
) -> torch.Tensor:
    """[Hq, R, tokens], in calls of ``runs`` pages each, or one."""
    out = torch.full((*query.shape[:2], tokens), torch.nan)
    step = runs or len(pages.planes)
    for first in range(0, len(pages.planes), step):
        some = pages.addresses[first : first + step]
        format_.scores(query, some, pages.shape, scaling, out, first * pages.shape.tokens)
    return out


def weighed(format_: KVFormat, weights: torch.Tensor, pages: Pages, runs: int = 0) -> torch.Tensor:
    out = torch.ones(*weights.shape[:2], pages.shape.dim)
    step = runs or len(pages.planes)
    for first in range(0, len(pages.planes), step):
        format_.weigh(weights, first * pages.shape.tokens, pages.addresses[first : first + step], pages.shape, out)
    return out


def repeated(numbers: torch.Tensor, groups: int) -> torch.Tensor:
    return numbers.double().repeat_interleave(groups, 0)


@formats
def test_its_name_is_that_in_the_registry(format_: KVFormat) -> None:
    assert FORMATS[format_.name] is format_


@formats
@dtypes
def test_planes_are_whole_blocks_of_the_drive(format_: KVFormat, dtype: torch.dtype) -> None:
    for tokens, dim in ((16, 64), (64, 80), (256, 128)):
        shape = PageShape(3, tokens, dim, dtype)
        for length in (format_.key_bytes(shape), format_.value_bytes(shape)):
            assert length % 4096 == 0
            assert 0 < length < shape.size + 4096


@formats
@dtypes
@planes
def test_what_is_encoded_is_decoded(format_: KVFormat, dtype: torch.dtype, keys: bool) -> None:
    numbers = random(3, 128, 80, dtype=dtype, seed=0)
    found = decoded(format_, pages_of(format_, numbers, 64, keys=keys), keys=keys)
    if format_.exact:
        assert torch.equal(found, numbers)
    else:
        assert (found.float() - numbers.float()).norm() <= ERRORS[format_.name] * numbers.float().norm()


@formats
@planes
def test_pages_are_encoded_without_compiled_kernels(
    format_: KVFormat, keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "KERNELS", None)
    numbers = random(3, 128, 80, dtype=torch.bfloat16, seed=0)
    found = decoded(format_, pages_of(format_, numbers, 64, keys=keys), keys=keys)
    assert (found.float() - numbers.float()).norm() <= ERRORS.get(format_.name, 0) * numbers.float().norm()


@formats
@planes
def test_every_byte_of_a_plane_is_written(format_: KVFormat, keys: bool) -> None:
    numbers = random(3, 16, 80, dtype=torch.bfloat16, seed=0)
    shape = PageShape(3, 16, 80, torch.bfloat16)
    found = []
    for filling in (0, 255):
        plane = torch.full((format_.key_bytes(shape) if keys else format_.value_bytes(shape),), filling).byte()
        (format_.encode_keys if keys else format_.encode_values)(numbers, plane)
        found.append(plane)
    assert torch.equal(*found)


@formats
@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from(DTYPES), st.integers(0, 1 << 20))
def test_scores_are_rounded_products_with_the_keys(
    format_: KVFormat, shape: tuple[int, int, int, int, int, int], dtype: torch.dtype, seed: int
) -> None:
    """Two roundings, and what float32 sums in another order differ by. Behind the last token there may be anything."""
    heads, groups, rows, high, dim, tokens = shape
    pages = pages_of(format_, random(heads, tokens, dim, dtype=dtype, seed=seed), high, keys=True)
    query = random(heads * groups, rows, dim, dtype=dtype, seed=seed + 1)
    keys = repeated(decoded(format_, pages, keys=True)[:, :tokens], groups)
    found = scored(format_, query, pages, 0.3, tokens)
    wanted = query.double() @ keys.mT * 0.3
    products = query.double().abs() @ keys.abs().mT * 0.3
    sums = 2.0**-20 if format_.exact else max(2.0**-18, ROUNDING[dtype])
    slack = 2.1 * ROUNDING[dtype] * wanted.abs() + sums * products
    assert bool(((found - wanted).abs() <= slack).all())
    assert torch.equal(found, found.to(dtype).float())


@formats
@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from(DTYPES), st.integers(0, 1 << 20))
def test_weighted_values_are_added(
    format_: KVFormat, shape: tuple[int, int, int, int, int, int], dtype: torch.dtype, seed: int
) -> None:
    heads, groups, rows, high, dim, tokens = shape
    pages = pages_of(format_, random(heads, tokens, dim, dtype=dtype, seed=seed), high, keys=False)
    weights = random(heads * groups, rows, tokens, dtype=dtype, seed=seed + 1).abs()
    values = repeated(decoded(format_, pages, keys=False)[:, :tokens], groups)
    found = weighed(format_, weights, pages)
    products = 1 + weights.double() @ values.abs()
    slack = (2.0**-18 if format_.exact else max(2.0**-18, ROUNDING[dtype])) * products
    assert bool(((found - (1 + weights.double() @ values)).abs() <= slack).all())


@formats
@dtypes
def test_no_bit_depends_on_calls_or_threads(format_: KVFormat, dtype: torch.dtype) -> None:
    tokens, high = 9 * 16 - 5, 16
    keys = pages_of(format_, random(3, tokens, 80, dtype=dtype, seed=0), high, keys=True)
    values = pages_of(format_, random(3, tokens, 80, dtype=dtype, seed=1), high, keys=False)
    query = random(6, 3, 80, dtype=dtype, seed=2)
    weights = random(6, 3, tokens, dtype=dtype, seed=3).abs()
    threads, found = torch.get_num_threads(), []
    try:
        for team, runs in ((1, 0), (2, 4), (5, 2), (3, 1)):
            torch.set_num_threads(team)
            found.append((scored(format_, query, keys, 0.3, tokens, runs), weighed(format_, weights, values, runs)))
    finally:
        torch.set_num_threads(threads)
    for scores, out in found[1:]:
        assert torch.equal(scores, found[0][0])
        assert torch.equal(out, found[0][1])


@formats
def test_other_columns_are_left_alone(format_: KVFormat) -> None:
    pages = pages_of(format_, random(2, 32, 64, dtype=torch.bfloat16, seed=0), 16, keys=True)
    out = torch.full((4, 2, 64), torch.inf)
    format_.scores(random(4, 2, 64, dtype=torch.bfloat16, seed=1), pages.addresses, pages.shape, 1.0, out, 16)
    assert bool((out[..., :16] == torch.inf).all())
    assert bool((out[..., 48:] == torch.inf).all())
    assert not bool((out[..., 16:48] == torch.inf).any())


@formats
@pytest.mark.parametrize(("heads", "rows", "count"), [(0, 1, 2), (2, 0, 2), (2, 1, 0)])
def test_nothing_times_something_is_nothing(format_: KVFormat, heads: int, rows: int, count: int) -> None:
    for keys in (True, False):
        pages = pages_of(format_, torch.ones(2, 32, 64).bfloat16(), 16, keys=keys)
        shape = PageShape(heads, 16, 64, torch.bfloat16)
        out = torch.ones(2 * heads, rows, 32 if keys else 64)
        states = torch.ones(2 * heads, rows, 64 if keys else 32).bfloat16()
        if keys:
            format_.scores(states, pages.addresses[:count], shape, 1.0, out, 0)
        else:
            format_.weigh(states, 0, pages.addresses[:count], shape, out)
        assert bool((out == 1).all())
