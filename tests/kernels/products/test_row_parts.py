"""Rows in parts: only where every row is computed alike, whatever their number."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from penstock.kernels.experts.experts import Expert, Recipe, divide_expert
from penstock.kernels.products import row_parts as parts
from penstock.kernels.products.row_parts import ROWS, Probe, parts_keep_bits

Compute = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    known = dict(parts.BIT_TRIALS)
    parts.BIT_TRIALS.clear()
    yield
    parts.BIT_TRIALS.clear()
    parts.BIT_TRIALS.update(known)


def probed(compute: Compute, x: torch.Tensor) -> tuple[bool, bool]:
    with Probe() as probe:
        compute(x)
    return probe.rowwise, probe.alike


def mlp(activation: Compute, width: int, dtype: torch.dtype) -> Compute:
    chance = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=chance).to(dtype) / 8 for shape in ((width, 64), (64, width)))
    return lambda x: functional.linear(activation(functional.linear(x, up)), down)


def rows(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


def allowed(compute: Compute, x: torch.Tensor, width: int) -> bool:
    return parts_keep_bits(compute, lambda n: x[:n], len(x), "mlp", {64, width})


@given(st.integers(0, 40 * ROWS))
def test_parts_are_all_rows_in_order_and_neither_short_nor_long(count: int) -> None:
    found = parts.divide_rows(count)
    assert [row for part in found for row in range(part.start, part.stop)] == list(range(count))
    assert len(found) == 1 or all(ROWS <= part.stop - part.start < 2 * ROWS for part in found)
    assert len(found) > 1 or count < 2 * ROWS


def test_the_probe_finds_what_is_computed_otherwise_alone_than_in_a_vector() -> None:
    short, long = rows(1024, torch.bfloat16), rows(1024, torch.float32)
    assert probed(functional.silu, short) == (True, True)
    assert probed(lambda x: functional.relu(x) * x + 1, long) == (True, True)
    assert probed(lambda x: functional.silu(x.clone(), inplace=True), short) == (True, False), "not tried: it changes"
    weight = torch.ones(8, 64)
    with torch.inference_mode():
        assert probed(lambda x: functional.linear(x, weight).chunk(2, -1)[0], long) == (True, True)
        assert not probed(lambda x: x - x.mean(0), long)[0]
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    finite = every[every.isfinite()]
    for function, x, numbers in (
        (functional.silu, long, long.flatten()),
        (lambda x: functional.gelu(x, approximate="tanh"), short, finite),  # four numbers of all
    ):
        differ = not torch.equal(function(numbers), torch.cat([function(few) for few in numbers.split(5)]))
        assert probed(function, x) == (True, not differ)


@pytest.mark.parametrize("mixing", [lambda x: x - x.mean(0), lambda x: x.cumsum(0), lambda x: x.softmax(0)])
def test_what_may_mix_rows_is_not_divided(mixing: Compute) -> None:
    x = rows(2 * ROWS, torch.bfloat16)
    assert not probed(mixing, x)[0]
    assert not allowed(mixing, x, 64)
    assert set(parts.BIT_TRIALS.values()) == {False}


def test_a_product_that_depends_on_the_number_of_rows_is_not_divided() -> None:
    compute = mlp(functional.relu, 128, torch.float32)
    x = rows(2 * ROWS, torch.float32)
    assert allowed(compute, x, 128)
    parts.BIT_TRIALS.clear()
    assert not allowed(lambda x: compute(x) * (1 + 2**-20 * (len(x) == ROWS)), x, 128)
    parts.BIT_TRIALS.clear()
    assert not allowed(lambda x: (compute(x),), x, 128)  # type: ignore[arg-type,return-value]


def test_numbers_all_alike_prove_nothing() -> None:
    x = torch.zeros(2 * ROWS, 64)
    assert not allowed(mlp(functional.relu, 128, torch.float32), x, 128)
    assert not parts.BIT_TRIALS


def test_one_trial_for_every_number_of_rows() -> None:
    calls: list[int] = []
    inner = mlp(functional.silu, 128, torch.bfloat16)

    def compute(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return inner(x)

    for count in (2 * ROWS, 5 * ROWS + 3):
        assert allowed(compute, rows(count, torch.bfloat16), 128)
    assert max(calls) == 2 * ROWS, "the trial takes no more memory than the parts"
    assert len(calls) == 4
    assert not allowed(compute, rows(2 * ROWS - 1, torch.bfloat16), 128)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("width", [96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [functional.silu, functional.gelu, functional.relu])
def test_what_is_divided_has_the_bits_of_the_whole(
    activation: Compute, dtype: torch.dtype, width: int, threads: int
) -> None:
    compute, before = mlp(activation, width, dtype), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        divided = 0
        for count in (2 * ROWS, 3 * ROWS, 2 * ROWS + 1, 3 * ROWS + 37, 4 * ROWS - 2):
            x = rows(count, dtype)
            if allowed(compute, x, width):
                divided += 1
                pieces = [compute(x[part]) for part in parts.divide_rows(count)]
                assert torch.equal(torch.cat(pieces), compute(x)), count
        if activation is functional.relu:
            assert divided == 5, "every row is computed alike, whatever their number"
    finally:
        torch.set_num_threads(before)


class Mixes(torch.nn.Module):
    """No activation of any model."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def test_experts_are_divided_where_their_activation_allows() -> None:
    chance = torch.Generator().manual_seed(0)
    expert = Expert(torch.randn(128, 64, generator=chance), None, torch.randn(64, 128, generator=chance), None)
    hidden, picked = rows(4 * ROWS, torch.float32), torch.arange(0, 4 * ROWS, 2)

    def found(activation: Compute) -> int:
        return len(divide_expert(hidden, picked, expert, Recipe(transposed=False, activation=activation, post=None)))

    assert found(torch.nn.ReLU()) == 2
    assert found(Mixes()) == 1
    assert found(lambda x: x) == 1, "what has no name cannot be told from others"
