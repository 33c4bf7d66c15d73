"""Planes of any lengths and bytes: refused, found or computed, and never left. Crashers that were found are here."""

from collections.abc import Iterator

import pytest
import torch

from penstock.kernels.formats import lossless
from penstock.kernels.formats.base import Format
from penstock.kernels.formats.blocks import Blocks
from penstock.kernels.formats.planes import find_fault, locate
from penstock.kernels.formats.registry import ENCODING, FORMATS
from penstock.kernels.native import RUNS, find_level
from penstock.kernels.weights.packed_weight import PackedWeight
from tests.kernels.formats.plane_fuzzer import play
from tests.support.guarded import Guarded
from tests.support.levels import levels

N, K = 64, 256
ORDERED = FORMATS["uint4-64-ordered"]
LOSSLESS = FORMATS["lossless"]


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with Guarded() as memory:
        yield memory


def gaussian(n: int = N, k: int = K) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0)).bfloat16()


def coded() -> torch.Tensor:
    return LOSSLESS.encode([gaussian()], N, K)[0]


def ordered() -> tuple[torch.Tensor, torch.Tensor]:
    """A plane with an order of columns, and a view on that order."""
    assert isinstance(ORDERED, Blocks)
    chance = torch.Generator().manual_seed(0)
    plane = torch.randint(0, 256, ORDERED.lengths(N, K), dtype=torch.uint8, generator=chance)
    at, size = ORDERED.locate_part(-1, N, K)
    scales_at, scales = ORDERED.locate_part(1, N, K)
    plane[scales_at : scales_at + scales] = torch.full((scales // 2,), 0.01).half().view(torch.uint8)
    order = plane[at : at + size].view(torch.int32)
    order.copy_(torch.randperm(K, generator=chance))
    return plane, order


def fault(format_: Format, plane: torch.Tensor) -> str | None:
    """What is found, whether all is read at once or little."""

    def read(start: int, length: int) -> torch.Tensor:
        assert 0 <= start <= start + length <= len(plane)
        return plane[start : start + length]

    found = {at_once: find_fault(format_, 0, N, K, len(plane), read, at_once) for at_once in (None, 1, 9000, 1 << 20)}
    assert len(set(found.values())) == 1, found
    return found[None]


def product(format_: Format, plane: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    found = format_.find_product(1, N, K)
    if found is None:
        pytest.skip("no such product here")
    return found([locate(format_, [plane], N, K)], [state.data_ptr()])[0]


@pytest.mark.parametrize("place", [-1, K, K + 3, 2**31 - 1, -(2**31), -K])
def test_a_column_without_a_place_is_found_and_left_out(place: int, guarded: Guarded) -> None:
    plane, order = ordered()
    good = torch.empty(N, K, dtype=torch.float32)
    ORDERED.decode([plane], N, K, slice(0, N), good)
    lost, order[9] = int(order[9]), place
    assert fault(ORDERED, plane) == f"the order of its {K} columns leaves out column {lost}"
    out = guarded.room(N * K * 4).view(torch.float32).view(N, K).fill_(7.0)
    ORDERED.decode([plane], N, K, slice(0, N), out)
    others = torch.arange(K) != lost
    assert torch.equal(out[:, others], good[:, others])


@pytest.mark.parametrize("place", [-1, K, 2**31 - 1, -(2**31)])
def test_a_product_leaves_out_a_column_without_a_place(place: int, guarded: Guarded) -> None:
    plane, order = ordered()
    lost = int(order[9])
    only = torch.zeros(1, K, dtype=torch.bfloat16)
    only[0, lost] = 1
    state = guarded.put(only.view(torch.uint8).flatten()).view(torch.bfloat16).view(1, K)
    assert product(ORDERED, plane, state).abs().sum() > 1
    order[9] = place
    assert product(ORDERED, plane, state).abs().sum() == 0


def test_an_order_that_has_a_column_twice_is_found() -> None:
    plane, order = ordered()
    assert fault(ORDERED, plane) is None
    order[0] = order[1]
    assert "leaves out column" in str(fault(ORDERED, plane))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("end", [0, 8, 31, 1 << 20, 2**62, -1, -(2**63)])
@pytest.mark.parametrize("tile", [0, 1, 3])
def test_an_end_elsewhere_is_found_and_not_followed(
    tile: int, end: int, compiled: bool, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(lossless, "COMPILED", None)
        monkeypatch.setattr(lossless, "KERNELS", None)
    plane = coded()
    plane[:32].view(torch.int64)[tile] = end
    plane = guarded.put(plane, 64)
    assert "are inconsistent" in str(fault(LOSSLESS, plane))
    with pytest.raises(ValueError, match="damaged"):
        LOSSLESS.decode([plane], N, K, slice(0, N), torch.empty(N, K, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="damaged"):
        product(LOSSLESS, plane, gaussian(1))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("change", ["first count", "second count", "more in it", "level 0", "nothing"])
def test_a_tile_that_holds_something_else_is_found(
    change: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(lossless, "COMPILED", None)
        monkeypatch.setattr(lossless, "KERNELS", None)
    plane, at = coded(), 8 * (N // 16)
    ends = plane[:at].view(torch.int64)
    match change:
        case "first count":
            plane[at + 12] ^= 1
        case "second count":
            plane[at + 16] ^= 1
        case "more in it":
            ends[0] += 1
        case "level 0":
            plane[int(ends[0]) - 16 * K - 5] ^= 255
    wanted = None if change == "nothing" else "rows 0 to 15 are inconsistent"
    assert fault(LOSSLESS, plane) == wanted


@levels
def test_the_check_says_of_every_tile_what_the_decoder_says(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lossless, "RUNS", RUNS[: RUNS.index(level) + 1])
    monkeypatch.setattr(lossless, "KERNELS", find_level(level))
    dice, said = torch.Generator().manual_seed(0), set()
    for _ in range(300):
        plane = coded()
        at = 32 + int(torch.randint(len(plane) - 32 - 20 * K * 2, (1,), generator=dice))
        plane[at] = int(torch.randint(256, (1,), generator=dice))
        found = fault(LOSSLESS, plane)
        try:
            LOSSLESS.decode([plane], N, K, slice(0, N), torch.empty(N, K, dtype=torch.bfloat16))
        except ValueError:
            assert found
        else:
            assert found is None
        said.add(found)
    assert None in said
    assert len(said) > 2


@pytest.mark.parametrize("name", ["lossless", "int8", "nested", "uint4-64-ordered", "q8_0", "int4-64"])
@pytest.mark.parametrize("length", [0, 64, 4096])
def test_planes_of_other_lengths_become_no_weight(name: str, length: int) -> None:
    """Nothing at all was a NULL pointer, and a short plane read its neighbour."""
    plane = torch.zeros(length, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"{name} matrix \[{N}, {K}\] takes .* not {length}"):
        PackedWeight([plane], FORMATS[name], (N, K), torch.bfloat16)
    with pytest.raises(ValueError, match=rf"{name} matrix \[{N}, {K}\] takes .* not {length}"):
        FORMATS[name].decode([plane], N, K, slice(0, N), torch.empty(N, K, dtype=torch.bfloat16))


def test_int8_that_is_called_lossless_becomes_no_matrix() -> None:
    (plane,) = FORMATS["int8"].encode([gaussian()], N, K)
    with pytest.raises(ValueError, match="lossless"):
        PackedWeight([plane], LOSSLESS, (N, K), torch.bfloat16)


@pytest.mark.parametrize("name", ENCODING)
def test_planes_are_bytes(name: str) -> None:
    planes = FORMATS[name].encode([gaussian()], N, K)
    with pytest.raises(ValueError, match="is made of bytes"):
        locate(FORMATS[name], [planes[0].float(), *planes[1:]], N, K)


@pytest.mark.parametrize("name", ENCODING)
@pytest.mark.parametrize(
    ("rows", "shape"), [((1, 64), (63, K)), ((0, 65), (65, K)), ((0, 64), (64, K - 1)), ((-64, 0), (64, K))]
)
def test_rows_that_are_none_are_not_decoded(name: str, rows: tuple[int, int], shape: tuple[int, int]) -> None:
    planes = FORMATS[name].encode([gaussian()], N, K)
    with pytest.raises(ValueError):
        FORMATS[name].decode(planes, N, K, slice(*rows), torch.empty(shape, dtype=torch.bfloat16))


def test_random_planes_are_refused_found_or_computed() -> None:
    """The fuzzer, for some seconds: it is killed, or says which case, where a kernel leaves its planes."""
    assert {play(seed) for seed in range(300)} >= {"refused", "found", "computed"}


@pytest.mark.soak
def test_many_random_planes_are_refused_found_or_computed() -> None:
    assert {play(seed) for seed in range(1000, 21_000)} >= {"refused", "found", "computed"}
