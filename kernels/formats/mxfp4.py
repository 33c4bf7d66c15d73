"""MXFP4 of gpt-oss: blocks of 32 numbers of four bits (e2m1), each with a power of two (e8m0) as its scale.

Source: "OCP Microscaling Formats (MX) Specification", 1.0. The plane has the source's blocks, then its scales.
"""

from collections.abc import Sequence

import torch

from .blocks import Blocks, Kind, PlanePart, count_blocks

_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


class Mxfp4(Blocks):
    """Format ``mxfp4``: two numbers to a byte, the low half first, and [n, k / 32] scales, a byte each."""

    name = "mxfp4"
    kind = Kind.MXFP4

    def parts(self, n: int, k: int) -> tuple[PlanePart, ...]:
        """Return the blocks and the scales. Raises UnsuitableShape. See Blocks."""
        blocks = count_blocks(self.name, k, 32)
        return PlanePart(n, 16 * blocks), PlanePart(n, blocks)

    def numbers(self, parts: Sequence[torch.Tensor], k: int) -> torch.Tensor:
        """Decode to float32 [rows, k]. See Blocks."""
        values, scales = parts
        table = torch.tensor(_NUMBERS)
        pairs = torch.stack((values & 15, values >> 4), 2).view(len(values), -1, 32)
        # The exponents of float32 are the same. Its least normal number is twice the least scale.
        bits = torch.where(scales == 0, 1 << 22, scales.int() << 23).int()
        return (table[pairs.int()] * bits.view(torch.float32)[:, :, None]).view(len(values), k)
