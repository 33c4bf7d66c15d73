"""MXFP4 as gpt-oss has it: blocks of 32 numbers of four bits (e2m1), each with a power of two (e8m0) as its scale.

"OCP Microscaling Formats (MX) Specification", 1.0. The plane is the source's blocks, then its scales.
"""

from collections.abc import Sequence

import torch

from .blocks import Blocks, Kind, Part, whole

_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


class Mxfp4(Blocks):
    """Two numbers to a byte, the low half first; [n, k / 32] scales, a byte each."""

    name = "mxfp4"
    kind = Kind.MXFP4

    def parts(self, n: int, k: int) -> tuple[Part, ...]:
        blocks = whole(self.name, k, 32)
        return Part(n, 16 * blocks), Part(n, blocks)

    def numbers(self, parts: Sequence[torch.Tensor], k: int) -> torch.Tensor:
        values, scales = parts
        table = torch.tensor(_NUMBERS)
        pairs = torch.stack((values & 15, values >> 4), 2).view(len(values), -1, 32)
        # The exponents of float32 are the same; its least normal number is twice the least scale.
        bits = torch.where(scales == 0, 1 << 22, scales.int() << 23).int()
        return (table[pairs.int()] * bits.view(torch.float32)[:, :, None]).view(len(values), k)
