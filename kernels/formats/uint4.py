"""Four-bit integers of GPTQ and AWQ: groups of numbers with their own float16 scale and zero.

Sources: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022; "AWQ:
Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023. A number is (value - zero) * scale.
The sources pack along other dimensions. The plane has the same integers row by row.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ..native import COMPILED
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

    def find_fault(
        self, plane: int, n: int, k: int, length: int, read: Window, at_once: int | None = None
    ) -> str | None:
        """Return a fault if the order of columns leaves one out. See Format."""
        if not self.ordered:
            return None
        lost = _find_left_out(read(*self.locate_part(-1, n, k)), k)
        return None if lost is None else f"the order of its {k} columns leaves out column {lost}"

    def numbers(self, parts: Sequence[torch.Tensor], k: int) -> torch.Tensor:
        """Decode to float32 [rows, k]. See Blocks."""
        values, scales, zeros = parts
        runs = values.view(len(values), -1, 16)
        numbers = torch.stack((runs & 15, runs >> 4), 2).view(*zeros.shape, -1).float()
        each = scales.contiguous().view(torch.float16).float()
        return ((numbers - zeros[:, :, None].float()) * each[:, :, None]).view(len(values), k)


def _find_left_out(order: torch.Tensor, k: int) -> int | None:
    """Return the first of ``k`` columns that is not in ``order``, uint8 [4 * k], or None."""
    seen = np.zeros(k, np.bool_)
    if COMPILED is not None and k < 1 << 31:
        lost = int(COMPILED.penstock_first_left_out(order.data_ptr(), k, seen.ctypes.data))
        return None if lost < 0 else lost
    places = np.frombuffer(order.numpy(), np.uint32)
    seen[places[places < k]] = True
    return None if seen.all() else int(seen.argmin())


def pack_values(values: torch.Tensor) -> torch.Tensor:
    """Pack values below 16, uint8 [n, k], to uint8 [n, k / 2], the layout of the first part."""
    low, high = values.view(len(values), -1, 2, 16).unbind(2)
    return (low | high << 4).reshape(len(values), -1)
