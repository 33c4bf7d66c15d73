"""The layout of quantised pages: strips with rows of up to 32 codes, each row with a scale and a zero.

A strip is a matrix [inner, width]. Strips of keys have tokens along a row and channels down, strips of values have
channels along and tokens down. So each row is one group that is quantised together: keys by channel, values by token
(Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache"). Each head has the strips it needs, all of
one width. The last strip is filled up with repeated elements.

    strip: codes uint8 [inner, width * bits / 8] | scales bfloat16 [inner] | zeros bfloat16 [inner]
    page: strips of head 0 | strips of head 1 | ... | up to a multiple of 4096 bytes

With 4 bits, a byte holds code j (low half) and code j + width / 2. csrc/kv/quantised.h reads the same bytes.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from .base import PageShape, pad_to_page

WIDEST = 32
"""The most elements of a group."""


@dataclass(frozen=True, slots=True)
class Strips:
    """The strips of a page: `count` for each of `heads`, each [inner, width]. `along` elements of each row of a head
    are real, the others fill up the last strip."""

    heads: int
    along: int
    inner: int
    bits: int

    @property
    def count(self) -> int:
        """Strips of a head."""
        return -(-self.along // WIDEST)

    @property
    def width(self) -> int:
        """Elements of a row: an even number, as two codes of 4 bits share a byte."""
        share = -(-self.along // self.count)
        return share + share % 2

    @property
    def row(self) -> int:
        """Bytes of the codes of a row."""
        return self.width * self.bits // 8

    @property
    def size(self) -> int:
        """Bytes of a strip."""
        return self.inner * (self.row + 4)

    @property
    def page_bytes(self) -> int:
        """Bytes of the page, a multiple of 4096."""
        return pad_to_page(self.heads * self.count * self.size)

    def to_rows(self, lines: torch.Tensor) -> torch.Tensor:
        """The rows of all strips, [rows, width], from ``lines`` [heads, inner, along]."""
        missing = self.count * self.width - self.along
        whole = functional.pad(lines, (0, missing), mode="replicate")
        return whole.view(self.heads, self.inner, self.count, self.width).transpose(1, 2).reshape(-1, self.width)

    def to_lines(self, rows: torch.Tensor) -> torch.Tensor:
        """The inverse of ``to_rows``."""
        strips = rows.view(self.heads, self.count, self.inner, self.width).transpose(1, 2)
        return strips.reshape(self.heads, self.inner, -1)[:, :, : self.along]

    def write(self, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, data: torch.Tensor) -> None:
        """Fill ``data``, uint8 [page_bytes], with ``codes`` uint8 [rows, width], ``scales`` and ``zeros`` bfloat16
        [rows]."""
        if self.bits == 4:
            low, high = codes.chunk(2, dim=1)
            codes = low | high << 4
        strips, end = self.heads * self.count, self.inner * self.row
        whole = data[: strips * self.size].view(strips, self.size)
        whole[:, :end] = codes.reshape(strips, -1)  # the reference of compiled code gives columns
        for place, part in enumerate((scales, zeros)):
            at = end + place * 2 * self.inner
            whole[:, at : at + 2 * self.inner] = part.contiguous().view(torch.uint8).view(strips, -1)
        data[strips * self.size :].zero_()

    def read(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The codes, scales and zeros in ``data``, as ``write`` got them."""
        strips, end = self.heads * self.count, self.inner * self.row
        whole = data[: strips * self.size].view(strips, self.size)
        codes = whole[:, :end].reshape(-1, self.row)
        if self.bits == 4:
            codes = torch.cat([codes & 15, codes >> 4], dim=1)
        scales, zeros = whole[:, end:].contiguous().view(torch.bfloat16).view(strips, 2, -1).unbind(1)
        return codes, scales.reshape(-1), zeros.reshape(-1)


def lay_out_keys(shape: PageShape, bits: int) -> Strips:
    """The strips of a page of keys: tokens along, channels down."""
    return Strips(shape.heads, shape.tokens, shape.dim, bits)


def lay_out_values(shape: PageShape, bits: int) -> Strips:
    """The strips of a page of values: channels along, tokens down."""
    return Strips(shape.heads, shape.dim, shape.tokens, bits)
