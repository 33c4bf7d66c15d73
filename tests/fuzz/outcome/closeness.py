"""How close the numbers of two models must be."""

from enum import Enum

import torch

SUMS_OFF = {torch.float64: 2e-5, torch.float32: 2e-5, torch.float16: 0.008, torch.bfloat16: 0.06}
"""How far sums in another order may be off, as a share of the largest number: about 8 roundings in half precision."""


class Closeness(Enum):
    """BITS: equal. SUMS: sums in another order. FORMAT: products with encoded weights, which round otherwise.
    ROUGH_FORMAT: so in bfloat16, where random models are chaotic: transformers' own logits were 0.13 off those of
    float64, and 0.3 off others that were as close to them. Without a scale they are off by more than 1."""

    BITS = "bits"
    SUMS = "sums"
    FORMAT = "format"
    ROUGH_FORMAT = "rough format"

    def near(self, found: torch.Tensor, wanted: torch.Tensor) -> bool:
        """Whether two tensors of one shape and dtype are close enough. NaN and infinity must be at the same places."""
        if not wanted.is_floating_point() or self is Closeness.BITS:
            return torch.equal(torch.nan_to_num(found), torch.nan_to_num(wanted)) and _same_nans(found, wanted)
        if not _same_nans(found, wanted):
            return False
        if not wanted.numel():
            return True
        away = torch.nan_to_num(found.double()) - torch.nan_to_num(wanted.double())
        if self in _FORMATS:
            return float(away.norm()) <= _FORMATS[self] * float(torch.nan_to_num(wanted.double()).norm())
        return float(away.abs().max()) <= self.slack(wanted)

    def slack(self, wanted: torch.Tensor) -> float:
        """How far apart two numbers of a tensor like ``wanted``, of any dtype, may be."""
        most = float(wanted.double().nan_to_num().abs().max()) if wanted.numel() else 0.0
        if self in _FORMATS:
            return 2 * _FORMATS[self] * most
        return most * (0.0 if self is Closeness.BITS else SUMS_OFF.get(wanted.dtype, SUMS_OFF[torch.bfloat16]))


_FORMATS = {Closeness.FORMAT: 0.02, Closeness.ROUGH_FORMAT: 0.5}
"""How far apart tensors may be, as a share of their norm."""


def _same_nans(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return not wanted.is_floating_point() or torch.equal(found.isnan(), wanted.isnan())
