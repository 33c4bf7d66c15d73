"""Formats of weights that come quantised: decoded as their definitions say, by the compiled half and without it."""

from collections.abc import Iterator

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from penstock.kernels.formats.base import UnsuitableShape
from penstock.kernels.formats.blocks import Blocks
from penstock.kernels.formats.registry import FORMATS
from penstock.kernels.formats.uint4 import pack_values
from penstock.kernels.native import RUNS
from tests.support.gguf_blocks import GGUF_NAMES, random_blocks
from tests.support.levels import held_to

N, K = 200, 512
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def of(name: str) -> Blocks:
    found = FORMATS[name]
    assert isinstance(found, Blocks)
    return found


def gguf_case(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows = random_blocks(name, N, K)
    return rows.view(-1), torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[name.upper()]))


def mxfp4_case(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randint(0, 256, (1, N, K // 32, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (1, N, K // 32), dtype=torch.uint8)
    scales[0, 0, :3] = torch.tensor([0, 1, 2], dtype=torch.uint8)
    wanted = convert_moe_packed_tensors(values, scales, dtype=torch.float32)[0].t()
    return of(name).join([values[0].view(N, -1), scales[0]], N, K), wanted


def fp8_case(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.arange(N * K, dtype=torch.int32).view(N, K).to(torch.uint8)
    codes[1:][codes[1:] & 127 == 127] = 0  # NaN in the first row only
    values = codes.view(torch.float8_e4m3fn)
    scales = torch.rand(-(-N // 128), K // 128) * 0.01
    full = values.new_zeros(256, K)
    full[:N] = values
    wanted = Fp8Dequantize(None)._dequantize_one(full, scales, torch.float32)[:N]
    lines = scales if "128x" in name else scales.repeat_interleave(128, 0)[:N]
    return of(name).join([values, lines], N, K), wanted


def mxfp8_case(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(N, K).to(torch.float8_e4m3fn)
    exponents = torch.randint(100, 140, (N, K // 32), dtype=torch.uint8)
    wanted = Fp8Dequantize(None)._dequantize_one(values, exponents, torch.float32)
    return of(name).join([values, (exponents.float() - 127).exp2()], N, K), wanted


def uint4_case(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    format_ = of(name)
    group = format_.group or K
    values = torch.randint(0, 16, (N, K), dtype=torch.uint8)
    scales, zeros = torch.randn(N, K // group).half(), torch.randint(0, 16, (N, K // group), dtype=torch.uint8)
    each = torch.arange(K) // group
    numbers = (values.float() - zeros[:, each].float()) * scales[:, each].float()
    order = torch.randperm(K).int()
    parts = [pack_values(values), scales, zeros, *([order] if format_.ordered else [])]
    wanted = torch.empty_like(numbers)
    wanted[:, order if format_.ordered else torch.arange(K)] = numbers
    return format_.join(parts, N, K), wanted


CASES = {
    **dict.fromkeys(GGUF_NAMES, gguf_case),
    "mxfp4": mxfp4_case,
    **dict.fromkeys(("fp8-128x128", "fp8-1x128"), fp8_case),
    "fp8-1x32": mxfp8_case,
    **dict.fromkeys((name for name in FORMATS if name.startswith("uint4")), uint4_case),
}


@pytest.fixture(autouse=True)
def _chance() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[None, *RUNS], ids=str)
def level(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Without the compiled half, and at each of its levels."""
    with held_to(request.param):
        yield request.param


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor; those of NaN do not count."""
    return tensor.nan_to_num(nan=1e30).contiguous().view(torch.uint8)


def test_every_format_has_a_case():
    assert {name for name, format_ in FORMATS.items() if isinstance(format_, Blocks)} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_decoding_gives_the_numbers_of_the_definition(name: str, level: str | None):
    plane, wanted = CASES[name](name)
    assert (len(plane),) == of(name).lengths(N, K)
    for dtype in DTYPES:
        for rows in (slice(0, N), slice(64, 192), slice(128, N)):
            out = torch.empty(rows.stop - rows.start, K, dtype=dtype)
            of(name).decode([plane], N, K, rows, out)
            assert torch.equal(bits(out), bits(wanted[rows].to(dtype))), f"{dtype}, {rows}"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_products_are_those_with_the_decoded_matrix(name: str, rows: int, level: str | None):
    cases = [CASES[name](name) for _ in range(3)]
    inputs = [torch.randn(rows, K).bfloat16() for _ in cases]
    product = of(name).find_product(rows, N, K)
    if level is None:
        assert product is None
        return
    assert product is not None
    made = product([[plane.data_ptr()] for plane, _ in cases], [x.data_ptr() for x in inputs])
    assert made.shape == (3, rows, N)
    assert made.dtype == torch.bfloat16
    for y, (_, wanted), x in zip(made, cases, inputs, strict=True):
        exact = x.double() @ wanted.double().t()
        # float32 sums, in any order; then rounded to eight bits.
        slack = 2**-8 * exact.abs() + 2**-20 * (x.double().abs() @ wanted.double().abs().t())
        known = exact.isfinite()
        assert torch.equal(y.isnan(), exact.isnan())
        assert bool(((y.double() - exact).abs() <= slack)[known].all())


@pytest.mark.parametrize("name", ["q4_1", "q6_k"])
def test_products_with_long_rows_keep_all_offsets(name: str, level: str | None):
    """Rows with more scales than the kernel keeps at a time."""
    n, k = 3, 16384 + 256
    blocks = random_blocks(name, n, k)
    wanted = torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[name.upper()])).double()
    inputs, plane = torch.rand(2, k).bfloat16(), blocks.view(-1)
    product = of(name).find_product(2, n, k)
    if product is None:
        assert level is None
        return
    (made,) = product([[plane.data_ptr()]], [inputs.data_ptr()])
    exact = inputs.double() @ wanted.t()
    slack = 2**-8 * exact.abs() + 2**-20 * (inputs.double() @ wanted.abs().t())
    assert bool(((made.double() - exact).abs() <= slack).all())


def test_no_products_of_many_rows_or_without_the_compiled_half(level: str | None):
    assert of("q8_0").find_product(5, N, K) is None
    assert of("q8_0").find_product(0, N, K) is None
    assert (of("q8_0").find_product(1, N, K) is None) == (level is None)


@pytest.mark.parametrize(
    ("name", "k"), [("q8_0", 48), ("q4_k", 128), ("mxfp4", 16), ("fp8-1x128", 40), ("uint4-128", 192), ("q4_0", 0)]
)
def test_widths_that_do_not_fit_are_refused(name: str, k: int):
    with pytest.raises(UnsuitableShape, match=f"{name}.*{k}"):
        of(name).lengths(64, k)


@pytest.mark.parametrize("name", ["q8_0", "q4_k", "mxfp4", "fp8-128x128", "uint4-64"])
def test_formats_that_only_come_from_files_say_so(name: str):
    with pytest.raises(ValueError, match=rf"{name}.*does not quantise"):
        of(name).encode([torch.zeros(N, K)], N, K)
