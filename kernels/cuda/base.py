"""What a weight format can do on a device, with planes that lie there, of the very bytes that a bundle has."""

from collections.abc import Sequence
from typing import Protocol

import torch


class DeviceFormat(Protocol):
    """Stateless, safe to use from several threads. All tensors are on one device; nothing waits for it."""

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """As ``Format.decode``, with the very bits; ``out`` in bfloat16, float16 or float32."""
        ...

    def rows(
        self, planes: Sequence[torch.Tensor], n: int, k: int, ids: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """[len(ids), k]: rows of the matrix, as ``decode`` has them; ``ids`` are integers, 0 to n - 1, in any order."""
        ...

    def product(self, planes: Sequence[torch.Tensor], n: int, k: int, x: torch.Tensor) -> torch.Tensor | None:
        """[rows, n]: ``x`` [rows, k], bfloat16, times the transpose of the matrix as it is stored: sums in float32,
        rounded once to bfloat16. None where decoding and torch's own product are the way: for more than a few rows, or
        without such a kernel."""
        ...
