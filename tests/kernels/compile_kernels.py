"""Compiles the kernels of kernels/cuda for a device that need not be there."""

from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from penstock.kernels.cuda import grouped, int4, int8, lossless, nested

_TARGET = GPUTarget("cuda", 80, 32)
_POINTERS = {
    **dict.fromkeys(("x", "scales_and_zeros"), "*bf16"),
    **dict.fromkeys(("plane", "planes_0", "planes_1", "planes_last", "arena"), "*u8"),
    **dict.fromkeys(("ids", "starts", "offsets", "ends"), "*i64"),
    "out": "*i16",
}
"""Types of arguments; all others are int32."""


def compile_all() -> None:
    _compile(int8._multiply, numbers="*i8", scales="*bf16", ROWS=16, BLOCK_N=32, BLOCK_K=128, OPERAND=tl.bfloat16)
    for group in (32, 128):
        _compile(int4._decode, numbers="*u8", GROUP=group)
        _compile(int4._multiply, numbers="*u8", out="*fp32", GROUP=group, ROWS=16, OPERAND=tl.bfloat16)
    for split, missing in ((False, 0), (False, 1), (True, 0), (True, 1), (True, 2)):
        _compile(nested._decode, GATHER=missing == 0, SPLIT=split, MISSING=missing, UNITS=32)
    for gather in (False, True):
        _compile(lossless._decode, GATHER=gather, NUMBERS=2048, num_warps=8)
    for sizes in (grouped._NARROW, grouped._WIDE):
        for packed in (False, True):
            _compile(grouped._multiply, EXPERTS=64, INT8=packed, OPERAND=tl.bfloat16, **sizes)


def _compile(kernel: Any, num_warps: int = 4, **arguments: Any) -> None:
    """Constants, and types that are not as usual, in ``arguments``."""
    names = kernel.arg_names
    types, constants = {}, {}
    for place, name in enumerate(names):
        given = arguments.get(name, _POINTERS.get(name, "i32"))
        types[name] = given if isinstance(given, str) else "constexpr"
        if not isinstance(given, str):
            constants[(place,)] = given
    triton.compile(ASTSource(kernel, types, constants), target=_TARGET, options={"num_warps": num_warps})
