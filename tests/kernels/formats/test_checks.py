"""Planes that cannot be those of a matrix are refused before a kernel sees them, with the reason."""

import pytest
import torch

from penstock.kernels.formats.base import SLAB, UnsuitableShape
from penstock.kernels.formats.checks import check_dtype, check_lengths
from penstock.kernels.formats.registry import ENCODING, FORMATS
from tests.kernels.formats.test_contract import SHAPES, formats, matrix


def lengths_of(name: str, n: int, k: int) -> tuple[int, ...]:
    whole = matrix(n, k)
    return tuple(len(plane) for plane in ENCODING[name].encode(iter(whole.split(SLAB)), n, k))


@pytest.mark.parametrize("name", ENCODING)
@pytest.mark.parametrize("shape", [*SHAPES, (16, 4), (17, 8), (1, 512)], ids=str)
def test_what_is_encoded_passes_with_some_planes_or_all(name: str, shape: tuple[int, int]) -> None:
    try:
        lengths = lengths_of(name, *shape)
    except UnsuitableShape:
        with pytest.raises(ValueError, match=f"there is no {name} matrix"):
            check_lengths(name, *shape, [100])
        return
    for count in range(1, len(lengths) + 1):
        check_lengths(name, *shape, lengths[:count])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", [-1, 1, -64, None])
def test_other_lengths_are_refused(name: str, change: int | None) -> None:
    n, k = 64, 512
    told = FORMATS[name].lengths(n, k) or (2 * n * k + 8 * (n // 16),)
    for plane in range(len(told)):
        wrong = list(told)
        wrong[plane] = 0 if change is None else told[plane] + change
        if name == "lossless" and change is not None and change < 0:
            check_lengths(name, n, k, wrong)  # it may be shorter: that depends on the numbers
            continue
        with pytest.raises(ValueError, match=rf"{name} matrix \[64, 512\] takes .* not {wrong[plane]}"):
            check_lengths(name, n, k, wrong)


def test_a_lossless_matrix_has_a_least_length() -> None:
    """That of a matrix of one number; a longer one may have fewer bytes than its numbers, but not so few."""
    (plane,) = FORMATS["lossless"].encode([torch.ones(64, 512, dtype=torch.bfloat16)], 64, 512)
    check_lengths("lossless", 64, 512, [len(plane)])
    with pytest.raises(ValueError, match="takes"):
        check_lengths("lossless", 64, 512, [len(plane) - 1])


@pytest.mark.parametrize("lengths", [[], [1] * 4])
def test_no_planes_or_too_many_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=f"1 to 3 planes, not {len(lengths)}"):
        check_lengths("stacked", 64, 64, lengths)


@formats
@pytest.mark.parametrize(("n", "k"), [(0, 64), (64, 0), (-64, 64), (64, -64), (-64, -64)])
def test_matrices_without_numbers_are_refused(weights: object, n: int, k: int) -> None:
    name = getattr(weights, "name", "")
    with pytest.raises(ValueError, match=f"no {name} matrix"):
        check_lengths(name, n, k, [4096])


@pytest.mark.parametrize(("name", "k"), [("q8_0", 48), ("uint4-128-ordered", 192), ("lossless", 63)])
def test_columns_that_make_no_whole_groups_are_refused(name: str, k: int) -> None:
    with pytest.raises(ValueError, match=rf"there is no {name} matrix \[64, {k}\]"):
        check_lengths(name, 64, k, [64 * k])


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match="no weight format 'int3'"):
        check_lengths("int3", 64, 64, [64])
    with pytest.raises(ValueError, match="no weight format 'int3'"):
        check_dtype("int3", "bfloat16")


def test_dtypes_that_a_format_does_not_store_are_refused() -> None:
    check_dtype("lossless", "bfloat16")
    check_dtype("int8", "float16")
    for name, dtype in (("lossless", "float32"), ("int8", "int8"), ("int8", "no_dtype")):
        with pytest.raises(ValueError, match=f"{name} stores .* numbers, not {dtype}"):
            check_dtype(name, dtype)
