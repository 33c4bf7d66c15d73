"""The lossless format: the same bits always, two thirds of the bytes for weights, and nothing outside is ever read."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.nn import functional

from penstock.kernels.formats import lossless
from penstock.kernels.formats.base import SLAB, UnsuitableShape
from penstock.kernels.formats.lossless import Lossless
from penstock.kernels.formats.planes import locate
from penstock.kernels.formats.registry import FORMATS
from penstock.kernels.native import RUNS, find_level
from penstock.kernels.products.few_rows import MOST_ROWS, Products, find_product
from tests.support.guarded import Guarded
from tests.support.levels import held_to, levels

TRAINED = Path(__file__).parents[3] / "examples" / "tiny-moe" / "model.safetensors"
FORMAT = Lossless()
compiled = pytest.mark.skipif(lossless.COMPILED is None, reason="no compiler at installation")


@pytest.fixture(params=[*RUNS, "portable"])
def half(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each half of the format: the compiled one at each of its levels, and the one without a compiler."""
    if request.param == "portable":
        monkeypatch.setattr(lossless, "COMPILED", None)
    with held_to(None if request.param == "portable" else request.param):
        yield str(request.param)


def encoded(matrix: torch.Tensor) -> torch.Tensor:
    (plane,) = FORMAT.encode(matrix.split(SLAB), *matrix.shape)
    return plane


def decoded(plane: torch.Tensor, n: int, k: int, rows: slice | None = None) -> torch.Tensor:
    rows = slice(0, n) if rows is None else rows
    out = torch.full((rows.stop - rows.start, k), 7.0, dtype=torch.bfloat16)
    FORMAT.decode([plane], n, k, rows, out)
    return out


def bits(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.contiguous().view(torch.int16)


def gaussian(n: int, k: int, *, std: float = 0.02, seed: int = 0) -> torch.Tensor:
    return (torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * std).bfloat16()


def patterns(n: int, k: int, *, exponents: Sequence[int], seed: int) -> torch.Tensor:
    """[n, k] of any signs and mantissas, all ``exponents`` equally frequent."""
    chance = torch.Generator().manual_seed(seed)
    chosen = torch.tensor(exponents)[torch.randint(len(exponents), (n, k), generator=chance)]
    others = torch.randint(256, (n, k), generator=chance)
    return (chosen << 7 | others & 0x7F | (others & 0x80) << 8).to(torch.int32).to(torch.int16).view(torch.bfloat16)


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """Memory whose last page must not be touched: whoever does is killed."""
    with Guarded() as memory:
        yield memory


SHAPES = st.tuples(st.integers(16, 150), st.integers(1, 70).map(lambda quarter: 4 * quarter))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHAPES, st.lists(st.integers(0, 255), min_size=1, max_size=256, unique=True), st.integers(0, 1 << 20))
def test_any_bits_come_back(half: str, shape: tuple[int, int], exponents: list[int], seed: int) -> None:
    """From all alike to all equally frequent, where coding gains nothing; NaNs, infinities, zeros, denormals."""
    matrix = patterns(*shape, exponents=exponents, seed=seed)
    assert torch.equal(bits(decoded(encoded(matrix), *shape)), bits(matrix))


@compiled
@settings(max_examples=60, deadline=None)
@given(SHAPES, st.lists(st.integers(0, 255), min_size=1, max_size=20, unique=True), st.integers(0, 1 << 20))
def test_both_halves_write_the_same_bytes(shape: tuple[int, int], exponents: list[int], seed: int) -> None:
    matrix = patterns(*shape, exponents=exponents, seed=seed)
    wanted = encoded(matrix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lossless, "COMPILED", None)
        assert torch.equal(encoded(matrix), wanted)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHAPES, st.lists(st.integers(0, 255), min_size=1, max_size=256, unique=True), st.integers(0, 1 << 20))
def test_lengths_are_found_without_encoding(half: str, shape: tuple[int, int], exponents: list[int], seed: int) -> None:
    matrix = patterns(*shape, exponents=exponents, seed=seed)
    assert FORMAT.find_lengths(matrix.split(SLAB), *shape) == (len(encoded(matrix)),)


def test_each_exponent_finds_its_level(half: str) -> None:
    """Of sixteen exponents, each half as frequent as the one before: all levels are used, hardly a bit is wasted."""
    chance = torch.Generator().manual_seed(0)
    exponents = torch.empty(64, 512).geometric_(0.5, generator=chance).clamp_(max=16).int() + 100
    matrix = (exponents << 7).to(torch.int16).view(torch.bfloat16)
    plane = encoded(matrix)
    assert torch.equal(bits(decoded(plane, 64, 512)), bits(matrix))
    assert len(plane) / matrix.numel() < 1 + (2 + 2 / 8 + 2 / 64 + 8 / 512 + 0.05) / 8


@pytest.mark.parametrize("std", [1e-30, 0.02, 1.0, 1e30])
def test_two_thirds_of_gaussian_weights(half: str, std: float) -> None:
    matrix = gaussian(256, 512, std=std)
    assert len(encoded(matrix)) < 0.675 * matrix.nbytes


def test_two_thirds_of_trained_weights(half: str) -> None:
    raw = coded = 0
    with safe_open(TRAINED, "pt") as tensors:
        names = [name for name in tensors.keys() if ".layers.1." in name]  # noqa: SIM118
        gates = [
            torch.cat([tensors.get_tensor(name.replace("gate_", part)) for part in ("gate_", "up_")])
            for name in names
            if name.endswith("gate_proj.weight")
        ]
        others = [tensors.get_tensor(name) for name in names if "gate_proj" not in name and "up_proj" not in name]
    for matrix in gates + [other for other in others if other.ndim == 2]:
        plane = encoded(matrix)
        assert torch.equal(bits(decoded(plane, *matrix.shape)), bits(matrix))
        raw, coded = raw + matrix.nbytes, coded + len(plane)
    assert raw > 500_000
    assert coded < 0.68 * raw


def test_what_gains_nothing_stays_as_it_is(half: str) -> None:
    matrix = patterns(100, 64, exponents=range(256), seed=0)
    plane = encoded(matrix)
    assert len(plane) == matrix.nbytes + 8 * (100 // 16)
    assert torch.equal(plane[48:].view(torch.int16), bits(matrix).flatten())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(16, 300), st.data())
def test_any_slice_from_a_slab_on(half: str, n: int, data: st.DataObject) -> None:
    matrix = gaussian(n, 40)
    first = data.draw(st.integers(0, (n - 1) // SLAB)) * SLAB
    rows = slice(first, data.draw(st.integers(first, n)))
    assert torch.equal(decoded(encoded(matrix), n, 40, rows), matrix[rows])


def test_slabs_of_any_size_make_the_same_plane(half: str) -> None:
    matrix = gaussian(300, 64)
    (whole,) = FORMAT.encode([matrix], 300, 64)
    (parts,) = FORMAT.encode(iter([matrix[:128], matrix[128:192], matrix.T.contiguous().T[192:]]), 300, 64)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(("n", "k"), [(15, 64), (64, 63), (64, 2), (64, 0)])
def test_shapes_that_it_has_no_place_for(n: int, k: int) -> None:
    with pytest.raises(UnsuitableShape, match=rf"\[{n}, {k}\]"):
        FORMAT.lengths(n, k)
    assert FORMAT.find_product(1, n, k) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UnsuitableShape, match="bfloat16"):
        FORMAT.encode([torch.zeros(64, 64, dtype=dtype)], 64, 64)


def test_it_is_registered() -> None:
    found = FORMATS["lossless"]
    found.lengths(64, 64)
    assert (found.exact, found.planes) == (True, 1)


@compiled
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, MOST_ROWS),
    st.one_of(st.integers(16, 200), st.sampled_from([512, 1024])),
    st.sampled_from([64, 72, 100, 256, 512, 1000, 1024, 2048]),
    st.integers(1, 5),
    st.sampled_from([0.02, 1.0, 1e-38]),
    st.integers(0, 1 << 20),
    st.booleans(),
)
def test_products_equal_torchs_in_every_bit(
    rows: int, n: int, k: int, count: int, std: float, seed: int, biased: bool
) -> None:
    product = FORMAT.find_product(rows, n, k, biased=biased)
    if product is None:
        assert find_product(rows, n, k, biased=biased) is None
        return
    matrices = [gaussian(n, k, std=std, seed=seed + i) for i in range(count)]
    inputs = [gaussian(rows, k, std=1.0, seed=seed - i - 1) for i in range(count)]
    planes = [encoded(matrix) for matrix in matrices]
    biases = [gaussian(1, n, std=std, seed=seed + 100 + i)[0] for i in range(count)]
    found = product(
        [locate(FORMAT, [plane], n, k) for plane in planes],
        [x.data_ptr() for x in inputs],
        [bias.data_ptr() for bias in biases] if biased else None,
    )
    for one, matrix, x, bias in zip(found, matrices, inputs, biases, strict=True):
        assert torch.equal(bits(one), bits(functional.linear(x, matrix, bias if biased else None)))


@compiled
def test_products_with_tiles_as_they_are_and_rows_over() -> None:
    """Coded tiles, a tile that gained nothing, and four rows that make no tile."""
    product = FORMAT.find_product(2, 100, 1024)
    assert product is not None
    matrix = gaussian(100, 1024)
    # Finite numbers of which each has its own size.
    matrix[32:48] = patterns(16, 1024, exponents=range(100, 150), seed=0)
    plane, x = encoded(matrix), gaussian(2, 1024, std=1.0)
    ends = plane[:48].view(torch.int64).tolist()
    assert ends[2] - ends[1] == 2 * 16 * 1024
    found = product([locate(FORMAT, [plane], 100, 1024)], [x.data_ptr()])[0]
    assert torch.equal(bits(found), bits(functional.linear(x, matrix)))
    biased, bias = FORMAT.find_product(2, 100, 1024, biased=True), gaussian(1, 100, std=1.0)[0]
    assert biased is not None
    found = biased([locate(FORMAT, [plane], 100, 1024)], [x.data_ptr()], [bias.data_ptr()])[0]
    assert torch.equal(bits(found), bits(functional.linear(x, matrix, bias)))


@compiled
def test_there_are_products_for_the_usual_shapes() -> None:
    assert all(FORMAT.find_product(1, n, k) is not None for n, k in ((1024, 1024), (1024, 512), (144, 256), (256, 72)))
    assert FORMAT.find_product(MOST_ROWS + 1, 1024, 1024) is None


@levels
@pytest.mark.parametrize("order", [512, 0, -1, -2])
@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, MOST_ROWS),
    st.sampled_from([(16, 64), (100, 640), (36, 72), (50, 1024), (48, 100)]),
    st.lists(st.integers(90, 150), min_size=1, max_size=60, unique=True),
    st.integers(0, 1 << 20),
)
def test_products_at_every_level_are_those_with_the_matrix_as_it_is(
    level: str, order: int, rows: int, shape: tuple[int, int], exponents: list[int], seed: int
) -> None:
    """In each order of summation: coded tiles, tiles as they are, rows that make no tile."""
    n, k = shape
    kernels = find_level(level)
    assert kernels is not None
    if not kernels.takes_order(order):
        return
    matrix, x = patterns(n, k, exponents=exponents, seed=seed), gaussian(rows, k, std=1.0, seed=seed)
    plane = encoded(matrix)
    with held_to(level):
        plain = Products(rows, n, k, order=order, threads=2)
        found = lossless._LosslessProduct(plain)(
            [locate(FORMAT, [plane], n, k), locate(FORMAT, [plane], n, k)], [x.data_ptr()] * 2
        )
        wanted = plain([matrix.data_ptr()] * 2, [x.data_ptr()] * 2)
    assert torch.equal(bits(found), bits(wanted))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_lead_nowhere_outside(half: str, guarded: Guarded, data: st.DataObject) -> None:
    """The plane ends at memory that must not be read; what comes of it is an error or some matrix."""
    n, k = data.draw(st.sampled_from([(16, 4), (36, 24), (64, 64), (48, 200)]))
    plane = encoded(gaussian(n, k))
    assert torch.equal(decoded(guarded.put(plane), n, k), gaussian(n, k))
    places = st.one_of(st.integers(0, min(len(plane), 8 * (n // 16) + 20) - 1), st.integers(0, len(plane) - 1))
    for at in data.draw(st.lists(places, min_size=1, max_size=30)):
        plane[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    length = len(plane) - data.draw(st.sampled_from([0, 0, 1, 7, len(plane) // 2, len(plane) - 1]))
    with contextlib.suppress(ValueError):
        decoded(guarded.put(plane[:length]), n, k)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_levels_that_do_not_fit_together_are_an_error(half: str, count: int) -> None:
    """A code of level 0, and how many codes levels 1 and 2 have."""
    plane = encoded(gaussian(16, 64))
    if count == 0:
        first = len(plane) - 16 * 64 - 16 * 64 // 4
        plane[first] = 0 if plane[first] else 0x55
    else:
        plane[8 + 12 + 4 * (count - 1)] -= 4
    with pytest.raises(ValueError, match="lossless"):
        decoded(plane, 16, 64)


def test_the_levels_of_any_number_of_exponents_run_on(half: str) -> None:
    """Long rows of few exponents with codes: levels 1 to 3 are made ready many times, at all remainders."""
    matrix = patterns(16, 4000, exponents=range(100, 111), seed=1)
    plane = encoded(matrix)
    assert len(plane) < 0.9 * matrix.nbytes
    assert torch.equal(bits(decoded(plane, 16, 4000)), bits(matrix))


@compiled
def test_products_say_that_a_matrix_is_damaged() -> None:
    product = FORMAT.find_product(1, 64, 256)
    assert product is not None
    plane, x = encoded(gaussian(64, 256)), gaussian(1, 256)
    plane[8 * 4 + 12] += 4
    with pytest.raises(ValueError, match="lossless"):
        product([locate(FORMAT, [plane], 64, 256)], [x.data_ptr()])
