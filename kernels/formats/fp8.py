"""Block FP8 of DeepSeek-V3 and Qwen3: float8_e4m3fn, with a float32 scale for each 128 x 128 numbers; and MXFP8.

Sources: "DeepSeek-V3 Technical Report", 2024; "OCP Microscaling Formats (MX) Specification", 2023. The plane has the
source's numbers, then its scales, a line for each ``rows`` rows.
"""

from collections.abc import Sequence

import torch

from .blocks import Blocks, Kind, PlanePart, count_blocks

BLOCK = 128
"""Columns that share a scale. In the source this holds for rows as well."""


class Fp8(Blocks):
    """Block FP8, where ``rows`` rows and ``columns`` columns share a scale.

    ``rows`` is 1 if rows have scales of their own, or if matrices were stacked at rows that are not multiples of 128.
    """

    kind = Kind.FP8

    def __init__(self, rows: int, columns: int = BLOCK) -> None:
        self.name, self._rows, self.group = f"fp8-{rows}x{columns}", rows, columns

    def parts(self, n: int, k: int) -> tuple[PlanePart, ...]:
        """Return the numbers and the scales. See Blocks."""
        count_blocks(self.name, k, 32)
        return PlanePart(n, k), PlanePart(-(-n // self._rows), 4 * -(-k // self.group), self._rows)

    def numbers(self, parts: Sequence[torch.Tensor], k: int) -> torch.Tensor:
        """Decode to float32 [rows, k]. See Blocks."""
        values, scales = parts
        each = scales.contiguous().view(torch.float32).repeat_interleave(self.group, 1)
        return values.view(torch.float8_e4m3fn).float() * each[:, :k]
