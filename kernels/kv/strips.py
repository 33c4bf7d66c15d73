"""How quantised planes lie in memory: strips of up to 32 numbers a row, each row with a scale and a zero.

A strip is a matrix [inner, width]. Those of keys have tokens along a row and channels down, those of values channels
along and tokens down, so that each row is one group that is quantised together: keys by channel, values by token
(Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache"). Each head has the strips it needs, all of
one width; numbers that fill up the last one repeat those before.

    strip: numbers uint8 [inner, width * bits / 8] | scales bfloat16 [inner] | zeros bfloat16 [inner]
    plane: strips of head 0 | strips of head 1 | ... | up to a multiple of 4096 bytes

Of 4 bits, a byte holds number j (low half) and number j + width / 2. kv_quantised.c reads the same bytes.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from .base import PageShape, padded

WIDEST = 32
"""Numbers in a group, at most."""


@dataclass(frozen=True, slots=True)
class Strips:
    """The strips of a plane: `count` for each of `heads`, each [inner, width]; `along` numbers of a head are real."""

    heads: int
    along: int
    inner: int
    bits: int

    @property
    def count(self) -> int:
        return -(-self.along // WIDEST)

    @property
    def width(self) -> int:
        """Even, as two numbers of 4 bits share a byte."""
        share = -(-self.along // self.count)
        return share + share % 2

    @property
    def row(self) -> int:
        """Bytes of a row's numbers."""
        return self.width * self.bits // 8

    @property
    def size(self) -> int:
        """Bytes of a strip."""
        return self.inner * (self.row + 4)

    @property
    def plane(self) -> int:
        return padded(self.heads * self.count * self.size)

    def rows(self, lines: torch.Tensor) -> torch.Tensor:
        """The rows of all strips, [rows, width], of ``lines`` [heads, inner, along]."""
        missing = self.count * self.width - self.along
        whole = functional.pad(lines, (0, missing), mode="replicate")
        return whole.view(self.heads, self.inner, self.count, self.width).transpose(1, 2).reshape(-1, self.width)

    def lines(self, rows: torch.Tensor) -> torch.Tensor:
        """The inverse of ``rows``."""
        strips = rows.view(self.heads, self.count, self.inner, self.width).transpose(1, 2)
        return strips.reshape(self.heads, self.inner, -1)[:, :, : self.along]

    def write(self, numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, plane: torch.Tensor) -> None:
        """Fill ``plane`` with ``numbers`` uint8 [rows, width], ``scales`` and ``zeros`` bfloat16 [rows]."""
        if self.bits == 4:
            low, high = numbers.chunk(2, dim=1)
            numbers = low | high << 4
        strips, end = self.heads * self.count, self.inner * self.row
        whole = plane[: strips * self.size].view(strips, self.size)
        whole[:, :end] = numbers.reshape(strips, -1)
        for place, part in enumerate((scales, zeros)):
            at = end + place * 2 * self.inner
            whole[:, at : at + 2 * self.inner] = part.contiguous().view(torch.uint8).view(strips, -1)
        plane[strips * self.size :].zero_()

    def read(self, plane: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What ``write`` was given."""
        strips, end = self.heads * self.count, self.inner * self.row
        whole = plane[: strips * self.size].view(strips, self.size)
        numbers = whole[:, :end].reshape(-1, self.row)
        if self.bits == 4:
            numbers = torch.cat([numbers & 15, numbers >> 4], dim=1)
        scales, zeros = whole[:, end:].contiguous().view(torch.bfloat16).view(strips, 2, -1).unbind(1)
        return numbers, scales.reshape(-1), zeros.reshape(-1)


def strips_of_keys(shape: PageShape, bits: int) -> Strips:
    return Strips(shape.heads, shape.tokens, shape.dim, bits)


def strips_of_values(shape: PageShape, bits: int) -> Strips:
    return Strips(shape.heads, shape.dim, shape.tokens, bits)
