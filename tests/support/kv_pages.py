"""Pages for the tests of attention: numbers, planes that hold them, and what the answer is."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from penstock.kernels.kv.base import KVFormat, PageShape


def random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@dataclass(frozen=True)
class Pages:
    """Keys, values or both of one sequence, encoded page by page."""

    planes: Sequence[torch.Tensor]
    shape: PageShape

    @property
    def addresses(self) -> list[int]:
        return [plane.data_ptr() for plane in self.planes]


def pages_of(format_: KVFormat, numbers: torch.Tensor, high: int, *, keys: bool) -> Pages:
    """``numbers`` [H, T, D] in pages of ``high`` tokens; behind the last token there is no number."""
    heads, tokens, dim = numbers.shape
    shape = PageShape(heads, high, dim, numbers.dtype)
    length = format_.key_bytes(shape) if keys else format_.value_bytes(shape)
    encode = format_.encode_keys if keys else format_.encode_values
    filled = torch.full((heads, -(-tokens // high) * high, dim), torch.nan if format_.exact else 0, dtype=numbers.dtype)
    filled[:, :tokens] = numbers
    planes = []
    for page in filled.split(high, 1):
        plane = torch.full((length,), 255, dtype=torch.uint8)
        encode(page, plane)
        planes.append(plane)
    return Pages(planes, shape)


def decoded(format_: KVFormat, pages: Pages, *, keys: bool) -> torch.Tensor:
    """[H, T, D], T a multiple of the page's tokens."""
    shape = pages.shape
    decode = format_.decode_keys if keys else format_.decode_values
    out = []
    for plane in pages.planes:
        out.append(torch.full((shape.heads, shape.tokens, shape.dim), torch.nan, dtype=shape.dtype))
        decode(plane, shape, out[-1])
    return torch.cat(out, 1)
