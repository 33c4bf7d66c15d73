"""Pages of 8 and 4 bits: what becomes of their numbers, and attention to them on every kind of processor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.kv import quantised
from penstock.kernels.kv.base import PageShape
from penstock.kernels.kv.int4 import INT4
from penstock.kernels.kv.int8 import INT8
from penstock.kernels.kv.quantised import LARGEST, Quantised, is_encodable
from penstock.kernels.native import RUNS, find_level
from tests.support.guarded import Guarded

FORMATS = {"int8": INT8, "int4": INT4}
GROUP = 32
LEVELS = ("none", *RUNS)

formats = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)
dims = pytest.mark.parametrize("dim", [8, 16, 24, 40, 80, 100, 128])
levels = pytest.mark.parametrize("level", LEVELS)
sides = pytest.mark.parametrize("keys", [True, False], ids=["keys", "values"])

NUMBERS = st.floats(-(2.0**60), 2.0**60, width=32) | st.sampled_from([0.0, -0.0, 1e-30, 3e-38, 1e-45, 1.0, 1.0])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoded(format_: Quantised, page: torch.Tensor, *, keys: bool) -> torch.Tensor:
    shape = PageShape(*page.shape, page.dtype)
    plane = torch.full((format_.key_bytes(shape) if keys else format_.value_bytes(shape),), 255, dtype=torch.uint8)
    (format_.encode_keys if keys else format_.encode_values)(page, plane)
    return plane


def decoded(
    format_: Quantised, plane: torch.Tensor, page: torch.Tensor, *, keys: bool, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """As ``page``, which was encoded."""
    out = torch.full(page.shape, torch.nan, dtype=dtype)
    shape = PageShape(*page.shape, page.dtype)
    (format_.decode_keys if keys else format_.decode_values)(plane, shape, out)
    return out


def there_and_back(format_: Quantised, page: torch.Tensor, *, keys: bool) -> torch.Tensor:
    return decoded(format_, encoded(format_, page, keys=keys), page, keys=keys)


def use(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setattr(quantised, "KERNELS", find_level(level))


@formats
@sides
def test_no_number_is_further_off_than_half_a_step_of_its_group(format_: Quantised, keys: bool) -> None:
    page = random(2, 64, 64) * torch.linspace(0.01, 100, 64)[:, None] ** (not keys)
    page = page * torch.linspace(0.01, 100, 64) ** keys + 3
    error = (there_and_back(format_, page, keys=keys) - page).abs()
    if keys:
        page, error = page.mT, error.mT
    groups = page.reshape(2, 64, 2, GROUP)
    step = (groups.amax(-1) - groups.amin(-1)) / (255 if format_ is INT8 else 15)
    # The zero and the scale are rounded, which makes steps a little larger; with 4 bits the largest errors are traded
    # for a smaller sum of squares.
    step = (step + 2.0**-7 * groups.abs().amax(-1) / 255) * (1 + 2.0**-7)
    worst = error.reshape(2, 64, 2, GROUP).amax(-1)
    assert bool((worst <= step * (0.5 if format_ is INT8 else 2) + 1e-5 * groups.abs().amax(-1)).all())


@formats
@dims
@sides
def test_errors_of_gaussian_numbers(format_: Quantised, dim: int, keys: bool) -> None:
    page = random(3, 64, dim)
    error = (there_and_back(format_, page, keys=keys) - page).norm() / page.norm()
    assert error < (0.006 if format_ is INT8 else 0.08)


@sides
def test_int4_has_a_smaller_error_than_the_whole_range_would_give(keys: bool) -> None:
    page = random(2, 64, 64)
    lines = page.mT if keys else page
    groups = lines.reshape(2, 64, 2, GROUP)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 15
    plain = ((groups - low) / step).round() * step + low
    error = (there_and_back(INT4, page, keys=keys) - page).norm()
    assert error < 0.97 * (plain - groups).norm()


@formats
@sides
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.25, 2.0**60, 1e-30])
def test_groups_of_one_value_are_exact(format_: Quantised, keys: bool, value: float) -> None:
    page = torch.full((2, 32, 40), value).bfloat16()
    assert torch.equal(there_and_back(format_, page, keys=keys), page.float())


@formats
def test_a_channel_of_large_keys_and_a_token_of_large_values_spoil_no_others(format_: Quantised) -> None:
    page = random(1, 64, 64)
    channel, token = page.clone(), page.clone()
    channel[:, :, 5] *= 1000
    token[:, 7] *= 1000
    one = there_and_back(format_, channel, keys=True)
    assert torch.equal(one[:, :, 6:], there_and_back(format_, page, keys=True)[:, :, 6:])
    other = there_and_back(format_, token, keys=False)
    assert torch.equal(other[:, 8:], there_and_back(format_, page, keys=False)[:, 8:])


@formats
@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=16), st.booleans(), st.sampled_from([torch.bfloat16, torch.float32]))
def test_whatever_can_be_encoded_stays_within_its_group(
    format_: Quantised, numbers: list[float], keys: bool, dtype: torch.dtype
) -> None:
    page = torch.tensor(numbers).repeat(16 * 24 // len(numbers) + 1)[: 16 * 24].view(1, 16, 24).to(dtype)
    assert is_encodable(page, page)
    found = there_and_back(format_, page, keys=keys)
    assert found.isfinite().all()
    line = 1 if keys else 2  # along which a group lies; all of a line is one group here
    low, high = page.float().amin(line, keepdim=True), page.float().amax(line, keepdim=True)
    slack = (high - low) * (0.01 if format_ is INT8 else 0.2) + page.float().abs().amax() * 2.0**-8 + 1e-37
    assert bool(((found >= low - slack) & (found <= high + slack)).all())


@formats
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2 * LARGEST])
def test_pages_with_numbers_that_are_none_are_refused(format_: Quantised, bad: float) -> None:
    page = random(2, 32, 40)
    assert is_encodable(page, page)
    page[1, 31, 39] = bad
    assert not is_encodable(page, torch.zeros(2, 32, 40))
    assert not is_encodable(torch.zeros(2, 32, 40), page)
    for keys in (True, False):
        with pytest.raises(ValueError, match="keep it as it is"):
            encoded(format_, page, keys=keys)


@formats
@sides
def test_bits_of_a_number_with_its_scales(format_: Quantised, keys: bool) -> None:
    shape = PageShape(8, 64, 128, torch.bfloat16)
    length = format_.key_bytes(shape) if keys else format_.value_bytes(shape)
    assert 8 * length == shape.elements * (9 if format_ is INT8 else 5)


@formats
@sides
@levels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_decoded_numbers_are_the_rounded_float32(
    format_: Quantised, keys: bool, level: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = random(2, 64, 72) + 1
    plane = encoded(format_, page, keys=keys)
    whole = decoded(format_, plane, page, keys=keys)
    use(monkeypatch, level)
    assert torch.equal(decoded(format_, plane, page, keys=keys, dtype=dtype), whole.to(dtype))


@formats
@sides
@levels
def test_strips_of_an_odd_number_of_bytes(
    format_: Quantised, keys: bool, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales of every second strip are at an odd address; `make sanitize` sees whether they are read as such."""
    page = random(3, 22, 21) if keys else random(3, 21, 22)
    plane = encoded(format_, page, keys=keys)
    use(monkeypatch, None)
    whole = decoded(format_, plane, page, keys=keys)
    monkeypatch.undo()
    use(monkeypatch, level)
    assert torch.equal(decoded(format_, plane, page, keys=keys), whole)


@formats
@levels
@dims
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 15])
def test_attention_is_that_to_decoded_numbers(
    format_: Quantised, level: str, dim: int, dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the order in which float32 numbers are added: so a score may be rounded to bfloat16's other neighbour."""
    heads, tokens, scaling = 2, 16, 0.3
    pages = [(random(heads, tokens, dim, seed=seed) + 2).to(dtype) for seed in range(3)]
    keys = [encoded(format_, page, keys=True) for page in pages]
    values = [encoded(format_, page, keys=False) for page in pages]
    known = torch.cat([decoded(format_, plane, pages[0], keys=True) for plane in keys], 1)
    query = random(heads, rows, dim, seed=7).to(dtype)
    products = (query.float() @ known.mT).to(dtype) * scaling
    sizes = query.float().abs() @ known.abs().mT * scaling
    step = 2.0**-7 if dtype == torch.bfloat16 else 0
    shape = PageShape(heads, tokens, dim, dtype)
    probabilities = random(heads, rows, 5 + 3 * tokens, seed=8).softmax(-1).to(dtype)
    known_values = torch.cat([decoded(format_, plane, pages[0], keys=False) for plane in values], 1)
    wanted = 1 + probabilities[:, :, 5:].float() @ known_values

    use(monkeypatch, level)
    out = torch.full((heads, rows, 5 + 3 * tokens), 7.0)
    format_.scores(query, [plane.data_ptr() for plane in keys], shape, scaling, out, 5)
    assert bool((out[:, :, :5] == 7).all())
    assert bool(((out[:, :, 5:] - products.float()).abs() <= step * products.float().abs() + 2.0**-18 * sizes).all())
    weighted = torch.ones(heads, rows, dim)
    format_.weigh(probabilities, 5, [plane.data_ptr() for plane in values], shape, weighted)
    torch.testing.assert_close(weighted, wanted, rtol=1e-5, atol=1e-5)


@formats
@levels
@pytest.mark.parametrize(("tokens", "dim"), [(32, 64), (16, 24), (48, 8), (64, 128)])
def test_pages_of_any_bytes_are_computed_within_their_end(
    format_: Quantised, level: str, tokens: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte of a page is an index or a count. Pages and results end where a page begins that nobody may touch."""
    use(monkeypatch, level)
    shape, chance = PageShape(2, tokens, dim, torch.bfloat16), torch.Generator().manual_seed(dim)
    for keys in (True, False):
        length = format_.key_bytes(shape) if keys else format_.value_bytes(shape)
        with Guarded() as memory, Guarded() as results:
            page = memory.put(torch.randint(0, 256, (length,), dtype=torch.uint8, generator=chance))
            out = results.room(2 * tokens * dim * 4).view(torch.float32).view(2, tokens, dim).fill_(7.0)
            (format_.decode_keys if keys else format_.decode_values)(page, shape, out)
            assert bool((out != 7.0).any())
            state = torch.ones(2, 3, dim if keys else tokens, dtype=torch.bfloat16)
            more = results.room(2 * 3 * (tokens if keys else dim) * 4).view(torch.float32).view(2, 3, -1).zero_()
            if keys:
                format_.scores(state, [page.data_ptr()], shape, 1.0, more, 0)
            else:
                format_.weigh(state, 0, [page.data_ptr()], shape, more)
            assert bool((more != 0).any())


@formats
@sides
def test_keys_of_absurd_length_take_no_stack(format_: Quantised, keys: bool) -> None:
    """The compiled half keeps a number for each of them on its stack: torch computes where there are too many."""
    shape = PageShape(1, 16, 300_000, torch.bfloat16)
    page = torch.zeros(format_.key_bytes(shape) if keys else format_.value_bytes(shape), dtype=torch.uint8)
    state = torch.ones(1, 1, shape.dim if keys else 16, dtype=torch.bfloat16)
    out = torch.zeros(1, 1, 16 if keys else shape.dim)
    if keys:
        format_.scores(state, [page.data_ptr()], shape, 1.0, out, 0)
    else:
        format_.weigh(state, 0, [page.data_ptr()], shape, out)
    whole = torch.ones(1, 16, shape.dim, dtype=torch.bfloat16)
    (format_.decode_keys if keys else format_.decode_values)(page, shape, whole)
    assert not out.any()
    assert not whole.any()


@formats
@sides
def test_pages_of_another_length_are_not_decoded(format_: Quantised, keys: bool) -> None:
    page = random(2, 16, 64)
    plane = encoded(format_, page, keys=keys)
    longer = torch.cat([plane, plane])
    for wrong in (plane[:-1], plane[:0], longer, longer[::2], plane.view(torch.int8)):
        with pytest.raises(ValueError, match=rf"a page of {format_.name} takes {len(plane)} bytes"):
            decoded(format_, wrong, page, keys=keys)
    decode = format_.decode_keys if keys else format_.decode_values
    with pytest.raises(ValueError, match="is not decoded to"):
        decode(plane, PageShape(2, 16, 64, torch.float32), torch.empty(2, 15, 64))
