"""int8 and int4: keys of 8 or 4 bits with the norm of the error of each. The tightest bounds for their size.

The mean key of a page is subtracted. The rest is rotated (a Walsh-Hadamard transform, "QuaRot: Outlier-Free 4-Bit
Inference in Rotated LLMs"), so that no channel is much larger than the others, and each token is rounded to integers
times its own scale. There are two bounds of the error of a score: the norm of the rounding error times the norm of the
query, and half the scale times the sum of the query's magnitudes. The smaller one counts. bounds.h describes the bytes.
"""

import functools
import math

import torch

from ...native import KERNELS
from .base import Bounds, bound_norms, bound_rounding, open_unknown, round_up

_LANES = 16
_HALF_ULP = 2.0**-24
_WIDEST, _LONGEST = 512, 256
"""Columns and tokens that bounds.h computes with."""
_ROOM = 4096
"""Bytes of a query as bounds.h prepares it, at most."""


class QuantisedKeys:
    """The summaries ``int8`` and ``int4``."""

    shared_bytes = 0

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.name = f"int{bits}"
        self._levels = 127 if bits == 8 else 7

    def page_bytes(self, heads: int, tokens: int, dim: int) -> int:
        """As in Summary."""
        if tokens % _LANES:
            raise ValueError(f"a page has {tokens} tokens; {self.name} summaries need a multiple of {_LANES}")
        wide = _wide(dim)
        return heads * (_numbers_at(tokens, wide) + tokens * wide * self.bits // 8)

    def fit(self, keys: torch.Tensor) -> "QuantisedKeys":
        """As in Summary."""
        return self

    def build(self, keys: torch.Tensor, tokens: int | None = None) -> torch.Tensor:
        """As in Summary."""
        pages, heads, there, dim = keys.shape
        tokens = tokens or there
        wide = _wide(dim)
        size = self.page_bytes(heads, tokens, dim) // heads
        numbers = torch.nn.functional.pad(keys.float(), (0, wide - dim))
        centre = numbers.mean(2).bfloat16()
        reach = bound_norms(numbers).amax(-1)
        turned = rotate(numbers - centre.float()[:, :, None])
        scale = round_up(turned.abs().amax(-1) / self._levels).clamp_min(torch.finfo(torch.bfloat16).tiny)
        whole = (turned / scale.float()[..., None]).round().clamp(-self._levels, self._levels)
        error = round_up(bound_norms(turned - whole * scale.float()[..., None]))
        finite = reach.isfinite() & (scale.isfinite() & error.isfinite()).all(-1)

        out = torch.zeros(pages, heads, size, dtype=torch.uint8)
        out[..., :4] = torch.where(finite, there, 0).to(torch.int32)[..., None].view(torch.uint8)
        out[..., 4:8] = reach[..., None].contiguous().view(torch.uint8)
        at = 8
        for part, length in ((centre, wide), (scale, tokens), (error, tokens)):
            out[..., at : at + 2 * part.shape[-1]] = part.contiguous().view(torch.uint8)
            at += 2 * length
        out[..., _numbers_at(tokens, wide) :] = self._pack(whole.nan_to_num(0), tokens)
        return out.view(pages, heads * size)

    def log_bounds(
        self,
        query: torch.Tensor,
        summaries: torch.Tensor,
        *,
        heads: int,
        tokens: int,
        scaling: float,
        softcap: float | None = None,
    ) -> Bounds:
        """As in Summary."""
        all_heads, rows, dim = query.shape
        share = bound_rounding(query.dtype, softcap)
        asked = query.float().reshape(heads, -1, dim).contiguous()
        if KERNELS is None or dim > _WIDEST or tokens > _LONGEST:
            found = self._reference(asked, summaries, tokens, scaling, softcap, share)
        else:
            found = self._native(asked, summaries, tokens, scaling, softcap, share)
        return Bounds(*(bound.view(all_heads, rows, -1) for bound in found))

    def _pack(self, whole: torch.Tensor, tokens: int) -> torch.Tensor:
        """The integers ``whole`` [n, H, T, W] as bytes, in the order of bounds.h, for pages of ``tokens`` tokens."""
        pages, heads, there, wide = whole.shape
        offset = torch.nn.functional.pad(whole + (self._levels + 1), (0, 0, 0, tokens - there)).to(torch.uint8)
        grouped = offset.view(pages, heads, tokens // _LANES, _LANES, wide // 4, 4).transpose(3, 4)
        if self.bits == 4:
            grouped = grouped[..., 0::2, :, :] | grouped[..., 1::2, :, :] << 4
        return grouped.reshape(pages, heads, -1)

    def _unpack(self, packed: torch.Tensor, tokens: int, wide: int) -> torch.Tensor:
        """The inverse of ``_pack``, float32 [n, H, tokens, W]."""
        pages, heads = packed.shape[:2]
        if self.bits == 4:
            halves = packed.view(pages, heads, tokens // _LANES, wide // 8, _LANES, 4)
            packed = torch.stack([halves & 15, halves >> 4], 4)
        grouped = packed.reshape(pages, heads, tokens // _LANES, wide // 4, _LANES, 4).transpose(3, 4)
        return grouped.reshape(pages, heads, tokens, wide).float() - (self._levels + 1)

    def _native(
        self,
        query: torch.Tensor,
        summaries: torch.Tensor,
        tokens: int,
        scaling: float,
        softcap: float | None,
        share: float,
    ) -> Bounds:
        assert KERNELS is not None
        heads, rows, dim = query.shape
        count = len(summaries)
        room = torch.empty(heads * rows * _ROOM, dtype=torch.uint8)
        lower, upper = torch.empty(2, heads, rows, count).unbind()
        KERNELS.bounds(
            summaries.data_ptr(),
            summaries.stride(0),
            count,
            query.data_ptr(),
            heads,
            rows,
            tokens,
            dim,
            self.bits,
            scaling,
            softcap or 0.0,
            share,
            room.data_ptr(),
            lower.data_ptr(),
            upper.data_ptr(),
            torch.get_num_threads() if count > _LANES else 1,
        )
        return Bounds(lower, upper)

    def _reference(
        self,
        query: torch.Tensor,
        summaries: torch.Tensor,
        tokens: int,
        scaling: float,
        softcap: float | None,
        share: float,
    ) -> Bounds:
        """Computes as bounds.h does, except that the query is not quantised."""
        heads, _, dim = query.shape
        wide = _wide(dim)
        pages = len(summaries)
        per_head = summaries.reshape(pages, heads, -1)

        def part(start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
            return per_head[..., start:end].contiguous().view(dtype)

        at = 8 + 2 * wide
        count, reach = part(0, 4, torch.int32), part(4, 8, torch.float32)
        centre = part(8, at, torch.bfloat16).float()
        scale = part(at, at + 2 * tokens, torch.bfloat16).float()
        error = part(at + 2 * tokens, at + 4 * tokens, torch.bfloat16).float()
        keys = self._unpack(per_head[..., _numbers_at(tokens, wide) :], tokens, wide) * scale[..., None]

        query = torch.nn.functional.pad(query, (0, wide - dim))
        turned = rotate(query)
        norm, half_sum = bound_norms(query), turned.abs().sum(-1) * 0.50001
        scores = torch.einsum("hrd,nhtd->hrnt", turned, keys)
        scores += torch.einsum("hrd,nhd->hrn", query, centre)[..., None]
        wrong = torch.minimum(
            torch.einsum("hr,nht->hrnt", norm, error), torch.einsum("hr,nht->hrnt", half_sum, scale)
        ) + torch.einsum("hr,nhz->hrnz", norm * (_HALF_ULP * (4 * wide + 64)), reach)
        count = count.masked_fill(count > tokens, 0)  # no summary of such a page
        there = (torch.arange(tokens) < count)[None, None].transpose(1, 3)[:, :, 0]  # [1, H, n, tokens]
        there = there.transpose(0, 1)  # [H, 1, n, tokens]
        return conclude_bounds(scores, wrong, there, scaling, softcap, share)


def conclude_bounds(
    scores: torch.Tensor,
    wrong: torch.Tensor,
    there: torch.Tensor,
    scaling: float,
    softcap: float | None,
    share: float,
) -> Bounds:
    """Bounds [H, rows, n] from ``scores`` [H, rows, n, T] before scaling, which may be off by ``wrong``, of the tokens
    ``there``."""
    bound = scaling * (scores + wrong)
    if softcap is not None:
        bound = softcap * ((bound / softcap).tanh() + 1e-6)
    bound = bound + share * bound.abs()
    strange = (there & ~bound.isfinite()).any(-1) | ~there.any(-1)
    upper = bound.masked_fill(~there, -torch.inf).logsumexp(-1)
    slack = 1e-5 + 4 * _HALF_ULP * upper.abs()
    worst = (scaling * wrong).masked_fill(~there, 0).amax(-1)
    largest = bound.abs().masked_fill(~there, 0).amax(-1)
    lower = upper - 2 * slack - (2 + 2 * share) * worst - 2 * share * largest - 4e-6 * (softcap or 0)
    return open_unknown(Bounds(lower, (upper + slack).masked_fill(strange, torch.inf)))


def rotate(rows: torch.Tensor) -> torch.Tensor:
    """``rows``, float32 [..., W], after Walsh-Hadamard transforms of the longest blocks of 2^n columns that divide
    W."""
    block = rows.shape[-1] & -rows.shape[-1]
    return (rows.reshape(-1, block) @ _transform(block)).view(rows.shape)


@functools.cache
def _transform(size: int) -> torch.Tensor:
    """The orthonormal transform, [size, size], size a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def _wide(dim: int) -> int:
    """``dim`` columns, up to a multiple of 8."""
    return -(-dim // 8) * 8


def _numbers_at(tokens: int, wide: int) -> int:
    """The offset of a head's integers."""
    return -(-(8 + 2 * wide + 4 * tokens) // 64) * 64
