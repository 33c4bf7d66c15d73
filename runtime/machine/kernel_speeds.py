"""How fast each kind of kernel is here, and on which level of instructions it runs: short measurements.

Weights are copied so often that most of them come from memory.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import NamedTuple

import torch
from torch.nn import functional

from ...kernels import native
from ...kernels.formats.base import Format
from ...kernels.formats.planes import locate
from ...kernels.formats.quantise import quantise_groups, quantise_rows
from ...kernels.formats.registry import ENCODING
from ...kernels.kv.base import KVFormat, PageShape
from ...kernels.kv.registry import FORMATS as KV_FORMATS
from ...kernels.kv.summaries.registry import SUMMARIES
from ...kernels.products.few_rows import find_product

TORCH = "torch"
"""The level of what no kernel of ours computes here."""

_ROWS, _COLUMNS = 512, 1024
_MEMORY = 16 << 20
"""Bytes of all copies of what is measured."""
_SECONDS = 0.012
_WEIGHTS = ("int8", "int4-64", "nested", "stacked", "lossless")
_HEADS, _TOKENS, _DIM, _QUERIES = 4, 64, 128, 4


class KernelSpeed(NamedTuple):
    """A ``kind`` of kernel runs on ``level``, one of isa.LEVELS or TORCH, at ``bytes_per_second`` of what it reads."""

    kind: str
    level: str
    bytes_per_second: float


class _Work(NamedTuple):
    """``run`` is called with numbers below ``copies`` and reads ``size`` bytes each time."""

    kind: str
    compiled: bool
    size: int
    copies: int
    run: Callable[[int], object]


def measure() -> list[KernelSpeed]:
    """Measure each kind of kernel for some milliseconds, with torch's threads: a quarter of a second in all."""
    level = native.KERNELS.level if native.KERNELS is not None else TORCH
    generator = torch.Generator().manual_seed(0)
    return [
        KernelSpeed(work.kind, level if work.compiled else TORCH, _rate(work))
        for work in (*_products(generator), *_encoders(generator), *_attention(generator))
    ]


def _rate(work: _Work) -> float:
    """The best rate of ``work`` in bytes per second."""
    work.run(0)
    best, spent, copies = math.inf, 0.0, cycle(range(work.copies))
    while spent < _SECONDS:
        copy = next(copies)
        start = time.perf_counter()
        work.run(copy)
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
    return work.size / best


def _copies(planes: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    count = max(1, _MEMORY // sum(plane.nbytes for plane in planes))
    return [[plane.clone() for plane in planes] for _ in range(count)]


def _products(generator: torch.Generator) -> Iterator[_Work]:
    """The product of a row with a matrix, as it is and in each format."""
    weights = torch.randn(_ROWS, _COLUMNS, generator=generator).bfloat16()
    row = torch.randn(1, _COLUMNS, generator=generator).bfloat16()
    plain, product = [each[0] for each in _copies([weights])], find_product(1, _ROWS, _COLUMNS)
    if product is None:
        yield _Work("bfloat16", False, weights.nbytes, len(plain), lambda i: functional.linear(row, plain[i]))
    else:
        run = product
        yield _Work(
            "bfloat16", True, weights.nbytes, len(plain), lambda i: run([plain[i].data_ptr()], [row.data_ptr()])
        )
    for name in _WEIGHTS:
        yield _product(ENCODING[name], weights, row)


def _product(format_: Format, weights: torch.Tensor, row: torch.Tensor) -> _Work:
    n, k = weights.shape
    planes = format_.encode([weights], n, k)
    size, copies, product = sum(plane.nbytes for plane in planes), _copies(planes), format_.find_product(1, n, k)
    if product is None:
        room = torch.empty_like(weights)

        def decoded(copy: int) -> None:
            format_.decode(copies[copy], n, k, slice(0, n), room)
            functional.linear(row, room)

        return _Work(format_.name, False, size, len(copies), decoded)
    run, places = product, [(locate(format_, planes, n, k), planes) for planes in copies]  # which must stay
    return _Work(format_.name, True, size, len(copies), lambda i: run([places[i][0]], [row.data_ptr()]))


def _encoders(generator: torch.Generator) -> Iterator[_Work]:
    """What packing computes, of a few rows."""
    weights = torch.randn(64, _COLUMNS, generator=generator)
    here, size = native.KERNELS is not None, weights.nbytes // 2  # as bfloat16
    nested = ENCODING["nested"]
    yield _Work("quantising to 8 bits", here, size, 1, lambda _: quantise_rows(weights))
    yield _Work("quantising to 4 bits", here, size // 4, 1, lambda _: quantise_groups(weights[:16], 64))
    yield _Work("nesting", here, size, 1, lambda _: nested.encode([weights], 64, _COLUMNS))


def _attention(generator: torch.Generator) -> Iterator[_Work]:
    """Scores of some queries with pages of keys, and bounds of such scores."""
    shape = PageShape(_HEADS, _TOKENS, _DIM, torch.bfloat16)
    keys = torch.randn(16, _HEADS, _TOKENS, _DIM, generator=generator).bfloat16()
    query = torch.randn(_HEADS * _QUERIES, 1, _DIM, generator=generator).bfloat16()
    for name in ("as-is", "int8", "int4"):
        yield _scores(KV_FORMATS[name], shape, keys, query)
    summary = SUMMARIES["int8"]
    made = summary.build(keys)
    yield _Work(
        "bounds of pages",
        native.KERNELS is not None,
        made.nbytes,
        1,
        lambda _: summary.log_bounds(query, made, heads=_HEADS, tokens=_TOKENS, scaling=0.1),
    )


def _scores(format_: KVFormat, shape: PageShape, keys: torch.Tensor, query: torch.Tensor) -> _Work:
    pages = torch.zeros(len(keys), format_.key_bytes(shape), dtype=torch.uint8)
    for page, numbers in zip(pages, keys, strict=True):
        format_.encode_keys(numbers, page)
    out = torch.empty(len(query), 1, len(keys) * shape.tokens)
    return _Work(
        f"attention, pages {format_.name}",
        native.KERNELS is not None,
        pages.nbytes,
        1,
        lambda _: format_.scores(query, [page.data_ptr() for page in pages], shape, 0.1, out, 0),  # pages must stay
    )
