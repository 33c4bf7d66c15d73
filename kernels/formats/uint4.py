"""Four-bit integers as GPTQ and AWQ have them: groups of numbers with a float16 scale and a zero of their own.

"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022; "AWQ: Activation-aware Weight
Quantization for LLM Compression and Acceleration", 2023. A number is (value - zero) * scale. The sources pack along
other dimensions; the plane has the same integers row by row.
"""

from collections.abc import Sequence

import torch

from .blocks import Blocks, Kind, Part, whole


class Uint4(Blocks):
    """Parts: values [n, k / 2], of 32 numbers the first 16 in the low halves and the others in the high ones; scales
    float16 [n, k / group]; zeros uint8 [n, k / group]; and if ``ordered``, the columns in the order of their groups.

    ``group`` 0: a whole row is one.
    """

    kind = Kind.UINT4

    def __init__(self, group: int, *, ordered: bool = False) -> None:
        self.name = f"uint4-{group or 'row'}{'-ordered' if ordered else ''}"
        self.group, self.ordered = group, ordered

    def parts(self, n: int, k: int) -> tuple[Part, ...]:
        whole(self.name, k, 32)
        groups = whole(self.name, k, self.group or k)
        order = (Part(1, 4 * k, 0),) if self.ordered else ()
        return Part(n, k // 2), Part(n, 2 * groups), Part(n, groups), *order

    def numbers(self, parts: Sequence[torch.Tensor], k: int) -> torch.Tensor:
        values, scales, zeros = parts
        runs = values.view(len(values), -1, 16)
        numbers = torch.stack((runs & 15, runs >> 4), 2).view(*zeros.shape, -1).float()
        each = scales.contiguous().view(torch.float16).float()
        return ((numbers - zeros[:, :, None].float()) * each[:, :, None]).view(len(values), k)


def packed(values: torch.Tensor) -> torch.Tensor:
    """uint8 [n, k / 2], as the first part has it, from values below 16, uint8 [n, k]."""
    low, high = values.view(len(values), -1, 2, 16).unbind(2)
    return (low | high << 4).reshape(len(values), -1)
