"""Products of tokens with several experts, whose matrices lie anywhere in an arena."""

from collections.abc import Sequence

import pytest
import torch

from penstock.kernels.cuda.grouped import ALIGNMENT, multiply_grouped
from penstock.kernels.formats.int8 import Int8
from tests.support.on_device import assert_close, chance, integers, on_device


def arena_of(planes: Sequence[torch.Tensor], order: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """An arena with ``planes`` [bytes] in ``order``, NaNs between them, and where each lies."""
    gap = torch.full((ALIGNMENT // 2,), torch.nan, dtype=torch.bfloat16).view(torch.uint8)
    parts, offsets, end = [gap], [0] * len(planes), len(gap)
    for number in order:
        offsets[number] = end
        fill = torch.full((-len(planes[number]) % ALIGNMENT,), 255, dtype=torch.uint8)
        parts += [planes[number], fill, gap]
        end += len(planes[number]) + len(fill) + len(gap)
    return torch.cat(parts), torch.tensor(offsets)


def starts_of(counts: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def as_bytes(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.contiguous().view(torch.uint8).flatten()


COUNTS = [
    pytest.param([1, 0, 2, 1, 0], id="few tokens, some experts with none"),
    pytest.param([0, 0, 0, 0, 7], id="all with the last"),
    pytest.param([17, 0, 16, 33, 1], id="blocks that are full and not"),
    pytest.param([70, 0, 64, 129, 1], id="many"),
]


@on_device
@pytest.mark.parametrize("packed", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("n", "k"), [(48, 64), (37, 150)])
def test_each_group_has_the_product_with_its_expert(
    n: int, k: int, counts: list[int], packed: bool, device: str
) -> None:
    matrices = [chance(n, k, seed=number) for number in range(len(counts))]
    planes = [as_bytes(matrix) for matrix in matrices]
    if packed:
        planes = [Int8().encode([matrix], n, k)[0] for matrix in matrices]
        for matrix, plane in zip(matrices, planes, strict=True):
            exact = torch.empty(n, k)
            Int8().decode([plane], n, k, slice(0, n), exact)
            matrix.data = exact
    arena, offsets = arena_of(planes, [3, 0, 4, 1, 2])
    starts, x = starts_of(counts), chance(sum(counts), k, seed=9)
    out = multiply_grouped(x.to(device), starts.to(device), arena.to(device), offsets.to(device), n, int8=packed)
    assert out.shape == (len(x), n)
    for expert, matrix in enumerate(matrices):
        group = slice(int(starts[expert]), int(starts[expert + 1]))
        assert_close(out[group], x[group], matrix)


@on_device
@pytest.mark.parametrize("packed", [False, True], ids=["bfloat16", "int8"])
def test_sums_that_float32_has_are_rounded_once_and_matrices_may_recur(packed: bool, device: str) -> None:
    n, k, counts = 40, 200, [3, 2, 0, 4]
    numbers = integers(-9, 9, n, k)
    plane = as_bytes(numbers.bfloat16())
    if packed:
        numbers[:, 0] = 127  # so that a scale of one is the best
        plane = torch.cat((as_bytes(numbers.to(torch.int8)), as_bytes(torch.ones(n).bfloat16())))
    arena, offsets = arena_of([plane], [0])
    x = integers(-30, 30, sum(counts), k, seed=1).bfloat16()
    everywhere = offsets.expand(4).to(device)
    out = multiply_grouped(
        x.to(device), starts_of(counts).int().to(device), arena.to(device), everywhere, n, int8=packed
    )
    assert torch.equal(out.cpu(), (x.double() @ numbers.double().T).bfloat16())


@on_device
def test_no_tokens_are_no_work_and_wrong_arguments_an_error(device: str) -> None:
    arena, offsets = (part.to(device) for part in arena_of([as_bytes(chance(8, 16))], [0]))
    x = chance(3, 16).to(device)
    assert multiply_grouped(x[:0], torch.tensor([0, 0], device=device), arena, offsets, 8).shape == (0, 8)
    for arguments in [
        (x, torch.tensor([0, 1, 3], device=device), arena, offsets, 8),
        (x.float(), torch.tensor([0, 3], device=device), arena, offsets, 8),
        (x, torch.tensor([0, 3], device=device), arena, offsets.int(), 8),
    ]:
        with pytest.raises(ValueError, match="1 experts need 2 starts"):
            multiply_grouped(*arguments)
