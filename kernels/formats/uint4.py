"""Four-bit integers of GPTQ and AWQ: groups of numbers with their own float16 scale and zero.

Sources: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022; "AWQ:
Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023. A number is (value - zero) * scale.
The sources pack along other dimensions. The plane has the same integers row by row.
"""

from collections.abc import Sequence

import numpy as np
import torch

from .base import Window
from .blocks import Blocks, Kind, PlanePart, count_blocks


class Uint4(Blocks):
    """Format of ``group`` numbers per scale, 0 for a whole row.

    Parts: values [n, k / 2], scales float16 [n, k / group], zeros uint8 [n, k / group], and if ``ordered`` the columns
    in the order of their groups. Of 32 values the first 16 are in the low halves of bytes, the others in the high
    halves.
    """

    kind = Kind.UINT4

    def __init__(self, group: int, *, ordered: bool = False) -> None:
        self.name = f"uint4-{group or 'row'}{'-ordered' if ordered else ''}"
        self.group, self.ordered, self.any_bytes = group, ordered, not ordered

    def parts(self, n: int, k: int) -> tuple[PlanePart, ...]:
        """Return the values, scales, zeros and the order of columns. Raises UnsuitableShape. See Blocks."""
        count_blocks(self.name, k, 32)
        groups = count_blocks(self.name, k, self.group or k)
        order = (PlanePart(1, 4 * k, 0),) if self.ordered else ()
        return PlanePart(n, k // 2), PlanePart(n, 2 * groups), PlanePart(n, groups), *order

    def find_fault(self, plane: int, n: int, k: int, length: int, read: Window) -> str | None:
        """Return a fault if the order of columns leaves one out. See Format."""
        if not self.ordered:
            return None
        order = np.frombuffer(read(*self.locate_part(-1, n, k)).numpy(), np.uint32)
        there = np.zeros(k, np.bool_)
        there[order[order < k]] = True
        if there.all():
            return None
        return f"the order of its {k} columns leaves out column {int(there.argmin())}"

    def numbers(self, parts: Sequence[torch.Tensor], k: int) -> torch.Tensor:
        """Decode to float32 [rows, k]. See Blocks."""
        values, scales, zeros = parts
        runs = values.view(len(values), -1, 16)
        numbers = torch.stack((runs & 15, runs >> 4), 2).view(*zeros.shape, -1).float()
        each = scales.contiguous().view(torch.float16).float()
        return ((numbers - zeros[:, :, None].float()) * each[:, :, None]).view(len(values), k)


def pack_values(values: torch.Tensor) -> torch.Tensor:
    """Pack values below 16, uint8 [n, k], to uint8 [n, k / 2], the layout of the first part."""
    low, high = values.view(len(values), -1, 2, 16).unbind(2)
    return (low | high << 4).reshape(len(values), -1)
