"""How close the numbers of two models must be."""

from enum import Enum

import torch

SUMS_OFF = {torch.float64: 2e-5, torch.float32: 2e-5, torch.float16: 0.008, torch.bfloat16: 0.06}
"""How far sums in another order may be off, as a share of the largest number: about 8 roundings in half precision."""


class Closeness(Enum):
    """BITS: equal. SUMS: sums in another order. FORMAT: products with encoded weights, which round otherwise."""

    BITS = "bits"
    SUMS = "sums"
    FORMAT = "format"

    def near(self, found: torch.Tensor, wanted: torch.Tensor) -> bool:
        """Whether two tensors of one shape and dtype are close enough. NaN and infinity must be at the same places."""
        if not wanted.is_floating_point() or self is Closeness.BITS:
            return torch.equal(torch.nan_to_num(found), torch.nan_to_num(wanted)) and _same_nans(found, wanted)
        if not _same_nans(found, wanted):
            return False
        if not wanted.numel():
            return True
        away = torch.nan_to_num(found.double()) - torch.nan_to_num(wanted.double())
        if self is Closeness.FORMAT:
            return float(away.norm()) <= 0.1 * float(torch.nan_to_num(wanted.double()).norm())
        return float(away.abs().max()) <= self.slack(wanted)

    def slack(self, wanted: torch.Tensor) -> float:
        """How far apart two numbers of a tensor like ``wanted``, of any dtype, may be."""
        most = float(wanted.double().nan_to_num().abs().max()) if wanted.numel() else 0.0
        sums = SUMS_OFF.get(wanted.dtype, SUMS_OFF[torch.bfloat16])
        return {Closeness.BITS: 0.0, Closeness.SUMS: sums, Closeness.FORMAT: 0.2}[self] * most


def _same_nans(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return not wanted.is_floating_point() or torch.equal(found.isnan(), wanted.isnan())
