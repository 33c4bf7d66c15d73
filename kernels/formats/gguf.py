"""The block formats of GGUF files: each row of a matrix is a run of blocks of 32 or 256 numbers, stored unchanged.

The definitions are those of ggml (ggml-quants.c). Decoding gives the numbers of the ``gguf`` package, bit for bit.
"""

from collections.abc import Callable, Sequence

import torch

from .base import Format
from .blocks import Blocks, Kind, PlanePart, count_blocks

_Unpack = Callable[[torch.Tensor], torch.Tensor]
"""Decodes uint8 [blocks, bytes] to float32 [blocks, numbers]."""


class Gguf(Blocks):
    """A block format of ``numbers`` numbers in ``size`` bytes per block."""

    def __init__(self, kind: Kind, numbers: int, size: int, unpack: _Unpack) -> None:
        self.name, self.kind = kind.name.lower(), kind
        self._numbers, self._size, self._unpack = numbers, size, unpack

    def parts(self, n: int, k: int) -> tuple[PlanePart, ...]:
        """Return the single part, all blocks. Raises UnsuitableShape. See Blocks."""
        return (PlanePart(n, count_blocks(self.name, k, self._numbers) * self._size),)

    def numbers(self, parts: Sequence[torch.Tensor], k: int) -> torch.Tensor:
        """Decode to float32 [rows, k]. See Blocks."""
        (lines,) = parts
        return self._unpack(lines.reshape(-1, self._size)).view(len(lines), k)


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """Read the float16 number at byte ``at`` of each block: float32 [blocks, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _halves(low_high: torch.Tensor, run: int = 16) -> torch.Tensor:
    """Unpack the low four bits of ``run`` bytes, then the high four, and so on: uint8, twice as many columns."""
    runs = low_high.reshape(len(low_high), -1, run)
    return torch.stack((runs & 15, runs >> 4), 2).view(len(low_high), -1)


def _fifth(bits: torch.Tensor) -> torch.Tensor:
    """Unpack the bits of four bytes, each worth 16: uint8 [blocks, 32]."""
    return ((bits[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1) << 4).view(len(bits), 32)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * (_halves(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _halves(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * ((_halves(blocks[:, 6:]) | _fifth(blocks[:, 2:6])).float() - 16)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * (_halves(blocks[:, 8:]) | _fifth(blocks[:, 4:8])).float() + _half(blocks, 2)


def _scales_mins(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpack six-bit scales and minima of the eight groups in a block of Q4_K or Q5_K: float32 [blocks, 8, 1]."""
    one, two, both = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((one & 63, (both & 15) | (one >> 6 << 4)), 1).float()
    mins = torch.cat((two & 63, (both >> 4) | (two >> 6 << 4)), 1).float()
    return (_half(blocks, 0) * scales)[:, :, None], (_half(blocks, 2) * mins)[:, :, None]


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, mins = _scales_mins(blocks)
    return (scales * _halves(blocks[:, 16:], 32).view(-1, 8, 32).float() - mins).view(-1, 256)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, mins = _scales_mins(blocks)
    fifth = (blocks[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1) << 4
    numbers = _halves(blocks[:, 48:], 32).view(-1, 8, 32) | fifth
    return (scales * numbers.float() - mins).view(-1, 256)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _halves(blocks[:, :128], 64)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    numbers = (low | ((pairs & 3) << 4).view(-1, 256)).float() - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (scales[:, :, None] * numbers.view(-1, 16, 16)).view(-1, 256)


GGUF: tuple[Format, ...] = (
    Gguf(Kind.Q8_0, 32, 34, _q8_0),
    Gguf(Kind.Q4_0, 32, 18, _q4_0),
    Gguf(Kind.Q4_1, 32, 20, _q4_1),
    Gguf(Kind.Q5_0, 32, 22, _q5_0),
    Gguf(Kind.Q5_1, 32, 24, _q5_1),
    Gguf(Kind.Q4_K, 256, 144, _q4_k),
    Gguf(Kind.Q5_K, 256, 176, _q5_k),
    Gguf(Kind.Q6_K, 256, 210, _q6_k),
)
