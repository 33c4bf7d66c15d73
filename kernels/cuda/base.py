"""Interface of a weight format on a device, with planes there that have the same bytes as in a bundle."""

from collections.abc import Sequence
from typing import Protocol

import torch


class DeviceFormat(Protocol):
    """A weight format on a device. Stateless, safe to use from several threads.

    All tensors are on one device. No call waits for it.
    """

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` as ``Format.decode``, with the same bits. ``out`` is bfloat16, float16 or float32."""
        ...

    def rows(
        self, planes: Sequence[torch.Tensor], n: int, k: int, ids: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Decode rows of the matrix to [len(ids), k], as ``decode``. ``ids`` are integers, 0 to n - 1, in any order."""
        ...

    def product(self, planes: Sequence[torch.Tensor], n: int, k: int, x: torch.Tensor) -> torch.Tensor | None:
        """Multiply ``x`` [rows, k], bfloat16, by the transpose of the matrix as stored. Returns bfloat16 [rows, n].

        Sums are in float32, rounded once. None where decoding and torch's own product are better: for more than a few
        rows, or without such a kernel.
        """
        ...
