"""Has the kernels of kernels/cuda compiled as they are launched, for a device that need not be there."""

from functools import partialmethod
from itertools import product
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from penstock.kernels.cuda.grouped import multiply_grouped
from penstock.kernels.cuda.registry import find_device_format
from penstock.kernels.formats.registry import FORMATS

N, K = 144, 128


def compile_all() -> None:
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda _: 0,
            get_current_target=lambda: GPUTarget("cuda", 80, 32),
        )
    )
    JITFunction.run = partialmethod(JITFunction.run, warmup=True)  # not launched
    JITFunction.__getitem__ = lambda self, grid: lambda *args, **options: self.run(*args, grid=grid, **options)
    for name in ("int8", "int4-32", "int4-128", "nested", "stacked", "lossless"):
        _use(name)
    for tokens, int8 in product((1, 40), (False, True)):
        offsets, starts = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1, tokens])
        arena = torch.zeros(4 * N * K, dtype=torch.uint8)
        multiply_grouped(torch.zeros(tokens, K).bfloat16(), starts, arena, offsets, N, int8=int8)


def _use(name: str) -> None:
    format, kernels = FORMATS[name], find_device_format(name)
    assert kernels is not None
    planes = format.encode([torch.randn(N, K).bfloat16()], N, K)
    out = torch.empty(N, K, dtype=torch.bfloat16)
    for depth in range(1, len(planes) + 1):
        kernels.decode(planes[:depth], N, K, slice(0, N), out)
    kernels.rows(planes, N, K, torch.tensor([3]), out.dtype)
    for rows in (1, 7):
        kernels.product(planes, N, K, torch.zeros(rows, K).bfloat16())
