"""Formats on a device: what they decode is bit for bit what the processor decodes of the same planes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from penstock.kernels.cuda.registry import find_device_format
from penstock.kernels.formats.lossless_tiles import ROWS
from penstock.kernels.formats.registry import FORMATS
from tests.support.on_device import NAMES, chance, decoded, on_device

SHAPES = [(147, 100), (64, 256)]
DEPTHS = [(name, depth) for name in NAMES for depth in range(1, FORMATS[name].planes + 1)]


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Bit for bit, NaNs and zeros too."""
    return found.dtype == wanted.dtype and torch.equal(found.cpu().view(torch.uint8), wanted.view(torch.uint8))


def planes_of(name: str, n: int, k: int) -> tuple[torch.Tensor, ...]:
    return FORMATS[name].encode([chance(n, k, seed=n)], n, k)


@on_device
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize(("name", "depth"), DEPTHS)
def test_decodes_what_the_processor_does(name: str, depth: int, n: int, k: int, device: str) -> None:
    kernels, planes = find_device_format(name), planes_of(name, n, k)[:depth]
    there = [plane.to(device) for plane in planes]
    assert kernels is not None
    dtypes = [torch.bfloat16] if FORMATS[name].exact else [torch.bfloat16, torch.float16, torch.float32]
    for dtype in dtypes:
        whole = decoded(name, planes, n, k, dtype)
        for rows in (slice(0, n), slice(64, n)):
            out = torch.full_like(whole[rows], torch.nan, device=device)
            kernels.decode(there, n, k, rows, out)
            assert same(out, whole[rows])


@on_device
@pytest.mark.parametrize(("name", "depth"), DEPTHS)
def test_rows_come_in_any_order_and_several_times(name: str, depth: int, device: str) -> None:
    n, k = 147, 100
    kernels, planes = find_device_format(name), planes_of(name, n, k)[:depth]
    assert kernels is not None
    there, whole = [plane.to(device) for plane in planes], decoded(name, planes, n, k, torch.bfloat16)
    for ids in (torch.tensor([3, 146, 3, 70, 0, 128, 144, 127] * 3), torch.tensor([17], dtype=torch.int32)):
        assert same(kernels.rows(there, n, k, ids.to(device), torch.bfloat16), whole[ids])
    none = torch.tensor([], dtype=torch.int64, device=device)
    assert kernels.rows(there, n, k, none, torch.bfloat16).shape == (0, k)


def tiles_of_all_kinds(k: int) -> torch.Tensor:
    """[83, k]: tiles of one exponent, of three levels, of more exponents than have codes, one that is stored as it is;
    and three rows behind the last."""
    generator = torch.Generator().manual_seed(1)
    any_bits = torch.randint(-(1 << 15), 1 << 15, (16, k), generator=generator, dtype=torch.int32).to(torch.int16)
    spread = torch.exp2(
        torch.randint(-20, 20, (16, k), generator=generator) * torch.rand(16, k, generator=generator) ** 6
    )
    parts = [
        torch.ones(16, k).bfloat16(),
        chance(16, k),
        (spread * (1 + torch.rand(16, k, generator=generator))).bfloat16(),
        any_bits.view(torch.bfloat16),
        torch.zeros(16, k).bfloat16(),
        any_bits[:3].view(torch.bfloat16),
    ]
    return torch.cat(parts)


@on_device
@pytest.mark.parametrize("k", [4, 260])
def test_lossless_has_every_bit_of_every_kind_of_tile(k: int, device: str) -> None:
    weights = tiles_of_all_kinds(k)
    n = len(weights)
    (plane,) = FORMATS["lossless"].encode([weights], n, k)
    kernels, out = find_device_format("lossless"), torch.empty(n, k, dtype=torch.bfloat16, device=device)
    assert kernels is not None
    kernels.decode([plane.to(device)], n, k, slice(0, n), out)
    assert same(out, weights)
    ids = torch.tensor([0, 17, 40, 63, 50, 82, 80])
    assert same(kernels.rows([plane.to(device)], n, k, ids.to(device), torch.bfloat16), weights[ids])


@on_device
def test_a_damaged_lossless_tile_is_nan_and_no_other(device: str) -> None:
    k = 64
    weights = tiles_of_all_kinds(k)
    n = len(weights)
    kernels = find_device_format("lossless")
    assert kernels is not None
    (plane,) = FORMATS["lossless"].encode([weights], n, k)
    ends = plane[: n // ROWS * 8].view(torch.int64).tolist()
    # Of the third tile: where its first codes are, and those of level 2.
    codes = ends[2] - ROWS * k * 5 // 4
    level_2 = ends[1] + 20 + -(-int(plane[ends[1] + 12 : ends[1] + 16].clone().view(torch.int32)) // 4)
    other = [(at, int(plane[at]) or 0x55) for at in (codes, level_2)]
    for at, damage in [(ends[1] + 12, 7), (ends[1] + 15, 255), *other]:
        damaged = plane.clone()
        damaged[at] ^= damage
        out = torch.zeros(n, k, dtype=torch.bfloat16, device=device)
        kernels.decode([damaged.to(device)], n, k, slice(0, n), out)
        assert out[32:48].isnan().all()
        assert same(torch.cat((out[:32], out[48:])), torch.cat((weights[:32], weights[48:])))
    for end in (-1, 0, ends[1] - 1, ends[1] + 19, len(plane) + 1, 1 << 62):
        damaged = plane.clone()
        damaged[: n // ROWS * 8].view(torch.int64)[2] = end
        out = torch.zeros(n, k, dtype=torch.bfloat16, device=device)
        kernels.decode([damaged.to(device)], n, k, slice(0, n), out)
        assert out[32:48].isnan().all()


def test_other_formats_are_not_for_devices() -> None:
    assert {name for name in FORMATS if find_device_format(name) is not None} == set(NAMES)


def run(code: str, **environment: str) -> None:
    """In another process, which compiles if it has to do with Triton."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_imports_triton_before_a_device_asks() -> None:
    run(
        "import sys, penstock.runtime.cli.main, penstock.kernels.weights.packed_weight\n"
        "assert 'triton' not in sys.modules"
    )


def test_without_triton_the_error_names_the_extra() -> None:
    run("""if True:
        import sys
        sys.modules["triton"] = None
        from penstock.kernels.cuda.registry import find_device_format
        assert find_device_format("q8_0") is None
        try:
            find_device_format("int8")
        except ImportError as error:
            assert "pip install 'penstock[cuda]'" in str(error), error
        else:
            raise AssertionError("no error")
    """)


def test_every_kernel_compiles_for_a_device(tmp_path: Path) -> None:
    """The interpreter lets pass what the compiler does not; that needs no device."""
    run("import tests.support.compile_cuda as kernels; kernels.compile_all()", TRITON_CACHE_DIR=str(tmp_path))
