"""How fast each kind of kernel is here, and on which level of instructions it runs: short measurements.

Weights are copied so often that most of them come from memory.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ...kernels import native
from ...kernels.formats.quantise import quantise_groups, quantise_rows
from ...kernels.formats.registry import ENCODING
from ...kernels.kv.base import KVFormat, PageShape
from ...kernels.kv.registry import FORMATS as KV_FORMATS
from ...kernels.kv.summaries.registry import SUMMARIES
from .row_products import Work, best_rate, packed_product, plain_product

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


def measure() -> list[KernelSpeed]:
    """Measure each kind of kernel for some milliseconds, with torch's threads: a quarter of a second in all."""
    level = native.KERNELS.level if native.KERNELS is not None else TORCH
    generator = torch.Generator().manual_seed(0)
    return [
        KernelSpeed(kind, level if work.compiled else TORCH, best_rate(work, _SECONDS))
        for kind, work in (*_products(generator), *_encoders(generator), *_attention(generator))
    ]


def _products(generator: torch.Generator) -> Iterator[tuple[str, Work]]:
    """The product of a row with a matrix, as it is and in each format."""
    weights = torch.randn(_ROWS, _COLUMNS, generator=generator).bfloat16()
    row = torch.randn(1, _COLUMNS, generator=generator).bfloat16()
    yield "bfloat16", plain_product(weights, row, _MEMORY)
    for name in _WEIGHTS:
        yield name, packed_product(ENCODING[name], weights, row, _MEMORY)


def _encoders(generator: torch.Generator) -> Iterator[tuple[str, Work]]:
    """What packing computes, of a few rows."""
    weights = torch.randn(64, _COLUMNS, generator=generator)
    here, size = native.KERNELS is not None, weights.nbytes // 2  # as bfloat16
    nested = ENCODING["nested"]
    yield "quantising to 8 bits", Work(lambda _: quantise_rows(weights), 1, size, here)
    yield "quantising to 4 bits", Work(lambda _: quantise_groups(weights[:16], 64), 1, size // 4, here)
    yield "nesting", Work(lambda _: nested.encode([weights], 64, _COLUMNS), 1, size, here)


def _attention(generator: torch.Generator) -> Iterator[tuple[str, Work]]:
    """Scores of some queries with pages of keys, and bounds of such scores."""
    shape = PageShape(_HEADS, _TOKENS, _DIM, torch.bfloat16)
    keys = torch.randn(16, _HEADS, _TOKENS, _DIM, generator=generator).bfloat16()
    query = torch.randn(_HEADS * _QUERIES, 1, _DIM, generator=generator).bfloat16()
    for name in ("as-is", "int8", "int4"):
        yield f"attention, pages {name}", _scores(KV_FORMATS[name], shape, keys, query)
    summary = SUMMARIES["int8"]
    made = summary.build(keys)
    yield (
        "bounds of pages",
        Work(
            lambda _: summary.log_bounds(query, made, heads=_HEADS, tokens=_TOKENS, scaling=0.1),
            1,
            made.nbytes,
            native.KERNELS is not None,
        ),
    )


def _scores(format_: KVFormat, shape: PageShape, keys: torch.Tensor, query: torch.Tensor) -> Work:
    pages = torch.zeros(len(keys), format_.key_bytes(shape), dtype=torch.uint8)
    for page, numbers in zip(pages, keys, strict=True):
        format_.encode_keys(numbers, page)
    out = torch.empty(len(query), 1, len(keys) * shape.tokens)

    def run(_: int) -> None:
        format_.scores(query, [page.data_ptr() for page in pages], shape, 0.1, out, 0)  # pages must stay

    return Work(run, 1, pages.nbytes, native.KERNELS is not None)
