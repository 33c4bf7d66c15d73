"""Where tests of kernels/cuda run: on a CUDA device, or on the CPU through Triton's interpreter (tests/conftest.py)."""

from collections.abc import Sequence

import pytest
import torch

from penstock.kernels.formats.registry import FORMATS

pytest.importorskip("triton")

on_device = pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="the device itself is there"),
            id="interpreted",
        ),
        pytest.param(
            "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
        ),
    ],
)

NAMES = ["int8", "int4-32", "int4-64", "int4-128", "nested", "stacked", "lossless"]


def chance(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def integers(low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Whole numbers from ``low`` to ``high``."""
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def decoded(name: str, planes: Sequence[torch.Tensor], n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """The whole matrix, by the processor."""
    out = torch.empty(n, k, dtype=dtype)
    FORMATS[name].decode(planes, n, k, slice(0, n), out)
    return out


def assert_close(found: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> None:
    """``found`` is ``x @ weights.T`` but for one rounding to bfloat16 (half of its last bit, 2**-8 of the number), and
    one in float32 for each of k terms and for what is done to them, relative to the sum of their sizes."""
    exact = x.double() @ weights.double().T
    sizes = x.double().abs() @ weights.double().abs().T
    allowed = 2**-8 * exact.abs() + (x.shape[1] + 8) * 2**-23 * sizes
    assert found.dtype == torch.bfloat16
    assert bool(((found.double().cpu() - exact).abs() <= allowed).all())
