"""The common part of KV formats of 8 and 4 bits. Keys are quantised by channel over up to 32 tokens, values by token
over up to 32 channels, each group once (as in KIVI and KVQuant).

A code stands for ``(code - offset) * scale + zero``, with offset 8 for 4 bits, else 0. Scores and weighted values are
computed from these in float32 (csrc/kv/quantised.h). Decoding rounds them to the dtype that is asked for.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch

from ..calls import view_memory, with_team
from ..native import KERNELS
from .base import PageShape
from .strips import Strips, lay_out_keys, lay_out_values

LARGEST = 2.0**60
"""The largest magnitude that can be encoded: squares of larger ones overflow."""

_IN_C = (torch.bfloat16, torch.float32)
_MOST_INNER = 4096
"""Tokens of a page and numbers of a key that quantised.h computes with: it has a factor for each on its stack."""

Quantise = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Returns codes uint8 [rows, width], and scales and zeros bfloat16 [rows], for float32 [rows, width]."""


def is_encodable(keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether a page can be quantised: all its elements are finite, and none is larger than LARGEST."""
    return all(bool((numbers.abs().amax() <= LARGEST).item()) for numbers in (keys, values) if numbers.numel())


@cache
def _page_bytes(shape: PageShape, bits: int, *, of_keys: bool) -> int:
    return (lay_out_keys if of_keys else lay_out_values)(shape, bits).page_bytes


def _is_compiled_for(shape: PageShape, dtype: torch.dtype) -> bool:
    return KERNELS is not None and dtype in _IN_C and max(shape.tokens, shape.dim) <= _MOST_INNER


class Quantised:
    """A KV format of ``bits`` bits, 8 or 4, with codes and scales that ``quantise`` finds."""

    exact = False

    def __init__(self, name: str, bits: int, quantise: Quantise) -> None:
        self.name, self._bits, self._quantise = name, bits, quantise

    def key_bytes(self, shape: PageShape) -> int:
        """As in KVFormat."""
        return lay_out_keys(shape, self._bits).page_bytes

    def value_bytes(self, shape: PageShape) -> int:
        """As in KVFormat."""
        return lay_out_values(shape, self._bits).page_bytes

    def encode_keys(self, keys: torch.Tensor, out: torch.Tensor) -> None:
        """Raises ValueError for keys that are not ``is_encodable``."""
        heads, tokens, dim = keys.shape
        self._encode(Strips(heads, tokens, dim, self._bits), keys.transpose(1, 2), out)

    def encode_values(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Raises ValueError for values that are not ``is_encodable``."""
        heads, tokens, dim = values.shape
        self._encode(Strips(heads, dim, tokens, self._bits), values, out)

    def _encode(self, strips: Strips, lines: torch.Tensor, out: torch.Tensor) -> None:
        if not is_encodable(lines, lines):
            raise ValueError(
                f"a page with NaN, infinities or numbers above 2^60 cannot be {self.name}; keep it as it is"
            )
        strips.write(*self._quantise(strips.to_rows(lines.float())), out)

    def decode_keys(self, data: torch.Tensor, shape: PageShape, out: torch.Tensor) -> None:
        """As in KVFormat."""
        self._decode(data, shape, out, of_keys=True)

    def decode_values(self, data: torch.Tensor, shape: PageShape, out: torch.Tensor) -> None:
        """As in KVFormat."""
        self._decode(data, shape, out, of_keys=False)

    def _decode(self, data: torch.Tensor, shape: PageShape, out: torch.Tensor, *, of_keys: bool) -> None:
        wanted = _page_bytes(shape, self._bits, of_keys=of_keys)
        if data.numel() != wanted or data.dtype != torch.uint8 or not data.is_contiguous():
            raise ValueError(f"a page of {self.name} takes {wanted} bytes, not {data.dtype} {[*data.shape]}")
        if out.shape != (shape.heads, shape.tokens, shape.dim):
            raise ValueError(f"{shape} is not decoded to {[*out.shape]}")
        if _is_compiled_for(shape, out.dtype) and out.is_contiguous():
            assert KERNELS is not None
            sizes = shape.heads, shape.tokens, shape.dim, self._bits
            arguments = (data.data_ptr(), *sizes, of_keys, out.data_ptr(), out.dtype == torch.bfloat16)
            kernel = KERNELS.kv_decode
            with_team(torch.get_num_threads(), lambda team: kernel(*arguments, team))
            return
        if of_keys:
            out.copy_(self._decode_lines(lay_out_keys(shape, self._bits), data).transpose(1, 2))
        else:
            out.copy_(self._decode_lines(lay_out_values(shape, self._bits), data))

    def _decode_lines(self, strips: Strips, data: torch.Tensor) -> torch.Tensor:
        codes, scales, zeros = strips.read(data)
        offset = 8 if self._bits == 4 else 0
        return strips.to_lines((codes.float() - offset) * scales.float()[:, None] + zeros.float()[:, None])

    def scores(
        self,
        query: torch.Tensor,
        pages: Sequence[int],
        shape: PageShape,
        scaling: float,
        out: torch.Tensor,
        at: int,
    ) -> None:
        """As in KVFormat."""
        if not query.numel():
            return
        rows, end = query.view(shape.heads, -1, shape.dim), out.shape[2]
        if _is_compiled_for(shape, query.dtype):
            assert KERNELS is not None
            self._call(KERNELS.kv_scores, pages, shape, rows, scaling, out.data_ptr(), end, at)
            return
        into = out.view(shape.heads, rows.shape[1], end)
        for keys, place in self._decode_pages(pages, shape, at, end, of_keys=True):
            into[:, :, place] = torch.matmul(rows.float(), keys.mT).to(query.dtype).mul_(scaling)

    def weigh(
        self, probabilities: torch.Tensor, at: int, pages: Sequence[int], shape: PageShape, out: torch.Tensor
    ) -> None:
        """As in KVFormat."""
        if not probabilities.numel():
            return
        end = probabilities.shape[2]
        rows = probabilities.view(shape.heads, -1, end)
        if _is_compiled_for(shape, probabilities.dtype):
            assert KERNELS is not None
            self._call(KERNELS.kv_weigh, pages, shape, rows, out.data_ptr(), end, at)
            return
        into = out.view(shape.heads, rows.shape[1], shape.dim)
        for values, place in self._decode_pages(pages, shape, at, end, of_keys=False):
            into.baddbmm_(rows[:, :, place].float(), values)

    def _call(
        self, kernel: Callable[..., None], pages: Sequence[int], shape: PageShape, rows: torch.Tensor, *more: Any
    ) -> None:
        count = len(pages)
        arguments = (
            count,
            (ctypes.c_uint64 * count)(*pages),
            shape.heads,
            shape.tokens,
            shape.dim,
            self._bits,
            rows.data_ptr(),
            rows.shape[1],
            rows.dtype == torch.bfloat16,
            *more,
        )
        with_team(torch.get_num_threads(), lambda team: kernel(*arguments, team))

    def _decode_pages(
        self, pages: Sequence[int], shape: PageShape, at: int, end: int, *, of_keys: bool
    ) -> Iterator[tuple[torch.Tensor, slice]]:
        """Yield the elements of each page, float32 [H, tokens, D], and the slice of its tokens; none from ``end``
        on."""
        strips = (lay_out_keys if of_keys else lay_out_values)(shape, self._bits)
        for data in pages:
            lines = self._decode_lines(strips, view_memory(data, strips.page_bytes))
            there = max(0, min(shape.tokens, end - at))
            yield (lines.transpose(1, 2) if of_keys else lines)[:, :there], slice(at, at + there)
            at += shape.tokens
