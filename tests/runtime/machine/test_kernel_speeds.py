"""What doctor says of kernels: each kind, its level, and a rate."""

import math
import weakref
from typing import Any

import pytest
import torch

from penstock.kernels import native
from penstock.kernels.formats import nested, quantise
from penstock.kernels.formats.registry import ENCODING
from penstock.kernels.kv import attention
from penstock.runtime.machine import kernel_speeds, row_products


def test_every_kind_has_a_level_and_a_rate() -> None:
    found = kernel_speeds.measure()
    kinds = [speed.kind for speed in found]
    assert len(kinds) == len(set(kinds))
    assert {"bfloat16", "int8", "int4-64", "nested", "stacked", "lossless"} <= set(kinds) & {"bfloat16", *ENCODING}
    known = {kernel_speeds.TORCH, native.KERNELS.level if native.KERNELS else kernel_speeds.TORCH}
    assert {speed.level for speed in found} <= known
    assert all(0 < speed.bytes_per_second < math.inf for speed in found)


def test_what_has_no_product_is_measured_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENCODING["int8"].__class__, "find_product", lambda *_: None)
    monkeypatch.setattr(row_products, "find_product", lambda *_: None)
    levels = {speed.kind: speed.level for speed in kernel_speeds.measure()}
    assert levels["int8"] == levels["bfloat16"] == kernel_speeds.TORCH


def test_without_compiled_kernels_torch_computes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (native, quantise, nested, attention):
        monkeypatch.setattr(module, "KERNELS", None)
    for format_ in ENCODING.values():
        monkeypatch.setattr(format_.__class__, "find_product", lambda *_: None)
    monkeypatch.setattr(row_products, "find_product", lambda *_: None)
    assert {speed.level for speed in kernel_speeds.measure()} == {kernel_speeds.TORCH}


def test_pages_stay_as_long_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    real = torch.zeros

    def zeros(*sizes: Any, **more: Any) -> torch.Tensor:
        tensor = real(*sizes, **more)
        if more.get("dtype") == torch.uint8:
            made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(torch, "zeros", zeros)
    works = [*kernel_speeds._attention(torch.Generator())]
    assert len(made) >= 3
    assert all(pages() is not None for pages in made), "kernels would read what is freed"
    assert len(works) == 4
