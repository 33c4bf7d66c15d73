"""Products of a few rows with several matrices: bit for bit torch's, or none."""

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from penstock.kernels.experts import experts
from penstock.kernels.experts.experts import Expert, Recipe, compute_expert, compute_experts
from penstock.kernels.isa import SETTING, torch_variables
from penstock.kernels.native import KERNELS
from penstock.kernels.products.few_rows import MOST_ROWS, Products, _trial, find_product
from tests.support.levels import held_to, levels

pytestmark = pytest.mark.levels

native = pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")


def addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


@native
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, MOST_ROWS),
    st.one_of(st.integers(1, 200), st.sampled_from([512, 1024, 1408])),
    st.one_of(st.integers(64, 300), st.sampled_from([512, 768, 1000, 1024, 2048])),
    st.integers(1, 5),
    st.integers(0, 1 << 20),
    st.booleans(),
)
def test_equal_to_torch_in_every_bit(rows: int, n: int, k: int, count: int, seed: int, biased: bool) -> None:
    product = find_product(rows, n, k, biased=biased)
    if product is None:
        return
    chance = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(n, k, generator=chance).bfloat16() for _ in range(count)]
    inputs = [torch.randn(rows, k, generator=chance).bfloat16() * 2.0 ** (seed % 40 - 20) for _ in range(count)]
    biases = [torch.randn(n, generator=chance).bfloat16() * 2.0 ** (seed % 43 - 20) for _ in range(count)]
    found = product(addresses(matrices), addresses(inputs), addresses(biases) if biased else None)
    for one, matrix, state, bias in zip(found, matrices, inputs, biases, strict=True):
        assert torch.equal(one, functional.linear(state, matrix, bias if biased else None))


@native
def test_there_is_one_for_the_usual_shapes() -> None:
    """Otherwise the test above would pass with none at all."""
    for biased in (False, True):
        for n, k in ((1024, 1024), (1024, 512), (768, 2048), (2048, 768)):
            assert find_product(1, n, k, biased=biased) is not None


@native
def test_products_at_once_share_the_threads_and_no_bit_depends_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second product begins while the first is under way."""
    found = find_product(1, 512, 1024)
    assert found is not None
    alone = Products(1, 512, 1024, order=found.order, threads=4)
    matrix, x = torch.randn(512, 1024).bfloat16(), torch.randn(1, 1024).bfloat16()
    threads: list[int] = []
    outs: list[torch.Tensor] = []

    class Watched:
        def products(self, *arguments: Any) -> None:
            threads.append(arguments[-1])
            if len(threads) == 1:
                outs.append(alone(addresses([matrix]), addresses([x])))
            KERNELS.products(*arguments)

    monkeypatch.setattr("penstock.kernels.products.few_rows.KERNELS", Watched())
    outs.append(alone(addresses([matrix]), addresses([x])))
    outs.append(alone(addresses([matrix]), addresses([x])))
    assert threads == [4, 2, 4]
    assert all(torch.equal(out[0], functional.linear(x, matrix)) for out in outs)


def test_the_trial_tells_orders_of_summation_apart() -> None:
    matrix, inputs = _trial(1, 256, 1024)
    (state,) = inputs[:1]
    whole = functional.linear(state.float(), matrix.float())
    halves = sum(
        functional.linear(state[:, at : at + 512].float(), matrix[:, at : at + 512].float()) for at in (0, 512)
    )
    assert (whole != halves).float().mean() > 0.5


@native
def test_infinities_and_nans_go_through() -> None:
    product = find_product(1, 64, 512)
    assert product is not None
    matrix, state = torch.randn(64, 512).bfloat16(), torch.randn(1, 512).bfloat16()
    matrix[3, 7], matrix[5, 511], matrix[9, 0] = float("inf"), float("nan"), -float("inf")
    found = product(addresses([matrix]), addresses([state]))[0]
    assert torch.equal(found.view(torch.int16), functional.linear(state, matrix).view(torch.int16)) or torch.equal(
        found.nan_to_num(7.0), functional.linear(state, matrix).nan_to_num(7.0)
    )


@native
@pytest.mark.parametrize(("n", "k"), [(512, 72), (512, 1024), (512, 1000)])
def test_zeros_have_the_sign_that_torch_gives_them(n: int, k: int) -> None:
    """Of numbers so small that sums come to -0: columns that are filled up with zeros, and a first sum of several."""
    product = find_product(1, n, k)
    assert product is not None
    chance, negative = torch.Generator().manual_seed(0), 0
    for _ in range(20):
        matrix = (torch.randn(n, k, generator=chance) * 1e-38).bfloat16()
        state = torch.randn(1, k, generator=chance).bfloat16()
        found = product(addresses([matrix]), addresses([state]))[0]
        assert torch.equal(found.view(torch.int16), functional.linear(state, matrix).view(torch.int16))
        negative += int(((found == 0) & found.signbit()).sum())
    assert KERNELS is not None
    assert negative > 0 or KERNELS.level != "avx512"  # torch's own loops begin with +0


def test_no_product_for_many_rows_or_where_the_trial_would_take_too_much() -> None:
    assert find_product(MOST_ROWS + 1, 1024, 1024) is None
    assert find_product(1, 1 << 20, 4096) is None  # a trial would take gigabytes


@native
def test_an_order_that_differs_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = functional.linear
    monkeypatch.setattr(functional, "linear", lambda x, w, b=None: linear(x.flip(-1), w.flip(-1), b))
    assert find_product(2, 320, 1536) is None
    assert find_product(2, 320, 1536, biased=True) is None


@native
@pytest.mark.parametrize("early", [False, True])
def test_a_bias_that_is_added_at_another_time_is_not_taken(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the product was rounded, or before the sum: as one more column."""
    linear = functional.linear

    def other(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        if b is None:
            return linear(x, w)
        if not early:
            return linear(x, w) + b
        ones = torch.ones(len(x), 1).bfloat16()
        return linear(torch.cat([ones, x], dim=1), torch.cat([b[:, None], w], dim=1))

    monkeypatch.setattr(functional, "linear", other)
    assert find_product(2, 336, 1536, biased=True) is None
    assert find_product(2, 336, 1536) is not None


def sum_in_order(order: int, row: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What bfloat16.h says of torch's own orders, step by step. Products of bfloat16 numbers are exact in float32."""
    products, block = row.float() * x.float(), 32 if order == -2 else 64
    lanes = torch.zeros(block)
    whole = len(products) // block * block
    for at in range(0, whole, block):
        lanes += products[at : at + block]
    few = 4 if order == -2 else 8
    last = torch.zeros(few)
    for at in range(whole, len(products) // (2 * few) * 2 * few, few):
        last += products[at : at + few]
    found = finish(order, lanes) + finish(order, last)
    for product in products[len(products) // (2 * few) * 2 * few :]:
        found = found + product
    return found


def finish(order: int, lanes: torch.Tensor) -> torch.Tensor:
    """Add all lanes: halves of them until few are left, then these as the order has it."""
    while len(lanes) > {0: 1, -1: 8, -2: 4}[order]:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    if order == -2:
        return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
    found = lanes[0]
    for lane in lanes[1:]:
        found = found + lane
    return found


@levels
@pytest.mark.parametrize("order", [0, -1, -2])
@pytest.mark.parametrize("k", [64, 100, 776, 4160])
def test_the_orders_of_torch_are_kept_at_every_level(level: str, order: int, k: int) -> None:
    """Numbers that cancel, so that each order gives other bits. Rows and columns that fill no block as well."""
    for rows in range(1, MOST_ROWS + 1):
        matrix, inputs = _trial(rows, 37, k)
        x, bias = inputs[0], (torch.randn(37) * 1e-6).bfloat16()
        with held_to(level):
            product = Products(rows, 37, k, order=order, threads=2)
            found = product(addresses([matrix]), addresses([x]))[0]
            with_bias = product(addresses([matrix]), addresses([x]), addresses([bias]))[0]
        wanted = {
            kind: torch.stack([torch.stack([sum_in_order(kind, one, state) for one in matrix]) for state in x])
            for kind in (0, -1, -2)
        }
        assert torch.equal(found, wanted[order].bfloat16())
        assert torch.equal(with_bias, (wanted[order] + bias.float()).bfloat16())
        assert not any(torch.equal(found, other.bfloat16()) for kind, other in wanted.items() if kind != order)


HELD = """
import penstock
import torch
from torch.nn import functional
from penstock.kernels.native import KERNELS
from penstock.kernels.products.few_rows import find_product
assert KERNELS.level == "{level}", KERNELS.level
for rows in (1, 2, 4):
    for n, k in ((256, 768), (300, 1000)):
        product = find_product(rows, n, k)
        assert product is not None, (rows, n, k)
        matrix, x = torch.randn(n, k).bfloat16(), torch.randn(rows, k).bfloat16()
        assert torch.equal(product([matrix.data_ptr()], [x.data_ptr()])[0], functional.linear(x, matrix))
        biased = find_product(rows, n, k, biased=True)
        assert biased is not None, (rows, n, k, "biased")
        bias = torch.randn(n).bfloat16()
        found = biased([matrix.data_ptr()], [x.data_ptr()], [bias.data_ptr()])[0]
        assert torch.equal(found, functional.linear(x, matrix, bias))
"""


@levels
def test_products_are_found_where_torch_is_held_to_the_level_too(level: str) -> None:
    """torch has other orders on processors without AVX-512, and without AVX2."""
    environment = os.environ | {SETTING: level, "OMP_NUM_THREADS": "1"}
    for name in torch_variables(level, platform.machine()):
        environment.pop(name, None)
    command = [sys.executable, "-W", "ignore", "-c", HELD.format(level=level)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("with_products", [True, False])
@pytest.mark.parametrize("rows", [[1, 1, 1], [2, 1, 2, 9], [5]])
def test_experts_side_by_side_are_those_one_by_one(
    rows: list[int], with_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_products:
        monkeypatch.setattr(experts, "find_product", lambda *_: None)
    chance = torch.Generator().manual_seed(3)

    def gate(up: torch.Tensor) -> torch.Tensor:
        first, second = up.chunk(2, dim=-1)
        return functional.silu(first) * second

    recipe = Recipe(transposed=False, activation=gate, post=None)
    them = [
        Expert(
            torch.randn(256, 128, generator=chance).bfloat16(),
            None,
            torch.randn(128, 128, generator=chance).bfloat16(),
            None,
        )
        for _ in rows
    ]
    states = [torch.randn(count, 128, generator=chance).bfloat16() for count in rows]
    found: dict[int, torch.Tensor] = {}
    for positions, out in compute_experts(states, them, recipe):
        found |= zip(positions, out, strict=True)
    assert sorted(found) == list(range(len(rows)))
    for position, (state, expert) in enumerate(zip(states, them, strict=True)):
        assert torch.equal(found[position], compute_expert(state, expert, recipe))


@native
def test_wrong_addresses_are_not_ours_to_guess() -> None:
    """The product takes addresses as they are: a matrix inside a larger buffer is as good as one of its own."""
    product = find_product(1, 128, 256)
    assert product is not None
    buffer = (ctypes.c_uint16 * (128 * 256 + 64))()
    inside = torch.frombuffer(buffer, dtype=torch.bfloat16, count=128 * 256, offset=64).view(128, 256)
    inside.copy_(torch.randn(128, 256))
    state = torch.randn(1, 256).bfloat16()
    assert torch.equal(product([inside.data_ptr()], [state.data_ptr()])[0], functional.linear(state, inside))
