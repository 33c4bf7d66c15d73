"""Which format that keeps every bit is the faster one here: as the weights are, or lossless."""

import functools
from pathlib import Path

from ...kernels.formats.lossless import decode_speed
from ..machine.speeds import drive_rates
from .formats import AS_IS

ENCODED = 0.67
"""Share of their bytes that lossless weights take, about."""
_BESIDES = 2.0
"""Cores decode and multiply: decoding alone has to be so much faster than the drive."""


@functools.cache
def exact_format(store: Path) -> str:
    """ "lossless" where this machine decodes faster than the drive of ``store`` delivers, else "as-is".

    Raises ConfigError when the drive cannot be measured.
    """
    drive = max(rate.bytes_per_second for rate in drive_rates(store))
    return "lossless" if decode_speed() >= _BESIDES * drive / ENCODED else AS_IS
