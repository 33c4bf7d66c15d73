"""Blocks whose checksum is right, and whose matrices lead a kernel astray: refused as they arrive, with their place."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.kernels.formats.base import Format
from penstock.kernels.formats.blocks import Blocks
from penstock.kernels.formats.registry import FORMATS
from penstock.tiering.errors import BundleCorrupt
from penstock.tiering.store.bundle.manifest import Block, DataFile, Manifest, Packing, place_tensors
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.store.bundle.writer import BundleWriter
from penstock.tiering.units import BlockId, Extent
from tests.support.bundle_blocks import read

N, K = 100, 128
ORDERED = "uint4-64-ordered"


def plane_of(format_: Format, n: int, k: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    if isinstance(format_, Blocks):
        (length,) = format_.lengths(n, k)
        plane = torch.randint(0, 256, (length,), dtype=torch.uint8, generator=chance)
        if format_.ordered:
            at, size = format_.locate_part(-1, n, k)
            plane[at : at + size] = torch.randperm(k, generator=chance).int().view(torch.uint8)
        return plane
    return format_.encode([torch.randn(n, k, generator=chance).bfloat16()], n, k)[0]


def write_bundle(target: Path, planes: Sequence[tuple[str, torch.Tensor]], *, transposed: bool = False) -> None:
    """A bundle with one block: a matrix of each format, [N, K] as encoded."""
    specs, length = place_tensors([(f"{name}.weight", "bfloat16", (N, K), len(plane)) for name, plane in planes])
    packed = tuple(
        replace(spec, shape=(K, N) if transposed else (N, K), packing=Packing(name, 0, transposed))
        for spec, (name, _) in zip(specs, planes, strict=True)
    )
    block, file = Block(BlockId("dense", "layer"), Extent(0, 0, length), "", packed), DataFile("data-00000.bin", length)
    writer = BundleWriter(target, [block], [file], staging=16 * 1024)
    writer.append((spec.offset, memoryview(plane.numpy())) for spec, (_, plane) in zip(specs, planes, strict=True))
    writer.finish(Manifest("identity", "checkpoint", "bfloat16", "as-is", {}, (file,), ()))


def refusal(target: Path, name: str, *, transposed: bool = False, plane: torch.Tensor) -> str:
    """What is said of a bundle with a good matrix, and then ``plane`` in format ``name``."""
    write_bundle(target, [("int8", plane_of(FORMATS["int8"], N, K)), (name, plane)], transposed=transposed)
    with Bundle.open(target) as bundle:
        assert bundle.verify() == [], "no checksum can tell"
        (block,) = bundle.manifest.blocks
        with pytest.raises(BundleCorrupt) as caught:
            read(bundle, [block])
        said = str(caught.value)
        assert f"data-00000.bin: block {block.id} at offset 0 holds no matrix in {name}.weight" in said
        assert f"(byte {block.tensors[1].offset} of it)" in said
        assert "\n" not in said
        return said


@pytest.mark.parametrize("transposed", [False, True])
def test_good_matrices_arrive(target: Path, transposed: bool) -> None:
    planes = [(name, plane_of(FORMATS[name], N, K)) for name in ("lossless", ORDERED, "nested", "q8_0", "uint4-64")]
    longer = torch.cat([planes[0][1], torch.zeros(100, dtype=torch.uint8)])  # room for a longer matrix like it
    write_bundle(target, [("lossless", longer), *planes[1:]], transposed=transposed)
    with Bundle.open(target) as bundle:
        (block,) = bundle.manifest.blocks
        (found,) = read(bundle, [block])
        for spec, (_, plane) in list(zip(block.tensors, planes, strict=True))[1:]:
            assert found[spec.offset : spec.offset + spec.length] == plane.numpy().tobytes()


@pytest.mark.parametrize("place", [-1, K, 2**31 - 1, -(2**31), "twice"])
@pytest.mark.parametrize("transposed", [False, True])
def test_an_order_of_columns_that_is_none(target: Path, place: int | str, transposed: bool) -> None:
    format_ = FORMATS[ORDERED]
    assert isinstance(format_, Blocks)
    plane = plane_of(format_, N, K)
    at, size = format_.locate_part(-1, N, K)
    order = plane[at : at + size].view(torch.int32)
    lost, order[7] = int(order[7]), int(order[8]) if isinstance(place, str) else place
    said = refusal(target, ORDERED, transposed=transposed, plane=plane)
    assert f"leaves out column {lost}" in said


@pytest.mark.parametrize("end", [0, 40, 2**20, 2**62, -1, -(2**63)])
@pytest.mark.parametrize("tile", [0, 3, 5])
def test_tiles_that_end_elsewhere(target: Path, end: int, tile: int) -> None:
    plane = plane_of(FORMATS["lossless"], N, K)
    plane[8 * tile : 8 * tile + 8] = torch.from_numpy(np.array([end], np.int64).view(np.uint8))
    assert "are inconsistent" in refusal(target, "lossless", plane=plane)


@pytest.mark.parametrize("at", ["count 1", "count 2", "code"])
def test_a_tile_that_does_not_hold_what_it_says(target: Path, at: str) -> None:
    plane = plane_of(FORMATS["lossless"], N, K)
    ends = plane[:48].view(torch.int64).tolist()
    place = {"count 1": ends[0] + 12, "count 2": ends[0] + 16, "code": ends[1] - 16 * K - 1}[at]
    plane[place] ^= 0xFF
    assert "rows 16 to 31 are inconsistent" in refusal(target, "lossless", plane=plane)


@pytest.mark.parametrize(("name", "length"), [("lossless", 1), ("lossless", 40), (ORDERED, 64)])
def test_planes_too_short_for_the_check_itself(target: Path, name: str, length: int) -> None:
    said = refusal(target, name, plane=torch.zeros(length, dtype=torch.uint8))
    assert f"a {name} matrix [{N}, {K}] takes" in said
    assert f"not {length}" in said


def test_int8_that_is_called_lossless(target: Path) -> None:
    refusal(target, "lossless", plane=plane_of(FORMATS["int8"], N, K))
