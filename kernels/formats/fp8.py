"""Block FP8 as DeepSeek-V3 and Qwen3 have it: float8_e4m3fn, and a float32 scale for each 128 x 128 numbers.

"DeepSeek-V3 Technical Report", 2024. The plane is the source's numbers, then its scales, a line for each ``rows`` rows.
"""

from collections.abc import Sequence

import torch

from .blocks import Blocks, Kind, Part, whole

BLOCK = 128
"""Columns, and in the source rows as well, that share a scale."""


class Fp8(Blocks):
    """``rows``: rows that share scales; 1 where matrices were stacked at other rows than multiples of 128."""

    kind = Kind.FP8
    group = BLOCK

    def __init__(self, rows: int) -> None:
        self.name, self._rows = f"fp8-{rows}x{BLOCK}", rows

    def parts(self, n: int, k: int) -> tuple[Part, ...]:
        whole(self.name, k, 32)
        return Part(n, k), Part(-(-n // self._rows), 4 * -(-k // BLOCK), self._rows)

    def numbers(self, parts: Sequence[torch.Tensor], k: int) -> torch.Tensor:
        values, scales = parts
        each = scales.contiguous().view(torch.float32).repeat_interleave(BLOCK, 1)
        return values.view(torch.float8_e4m3fn).float() * each[:, :k]
