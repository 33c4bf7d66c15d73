"""Contexts that users run models in, by name."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _autocast(dtype: torch.dtype, **options: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: torch.autocast("cpu", dtype=dtype, **options)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "plain": nullcontext,
    "inference_mode": torch.inference_mode,
    "autocast": _autocast(torch.bfloat16),
    "autocast float16": _autocast(torch.float16),
    "autocast without cache": _autocast(torch.bfloat16, cache_enabled=False),
    "default bfloat16": lambda: _default_dtype(torch.bfloat16),
    "default float64": lambda: _default_dtype(torch.float64),
    "deterministic": _deterministic,
    "math attention": lambda: sdpa_kernel(SDPBackend.MATH),
}


@contextmanager
def within(name: str) -> Iterator[None]:
    """Inside of the context ``name``; an autocast also without gradients where the name says so."""
    with ExitStack() as stack:
        if name.endswith(", no_grad"):
            stack.enter_context(torch.no_grad())
        stack.enter_context(CONTEXTS[name.removesuffix(", no_grad")]())
        yield


USUAL = ("no_grad", "no_grad", "no_grad", "plain", "inference_mode", "autocast", "autocast, no_grad",
         "autocast float16, no_grad", "autocast without cache", "default bfloat16", "default float64",
         "deterministic", "math attention")  # fmt: skip
"""Names to choose from."""
