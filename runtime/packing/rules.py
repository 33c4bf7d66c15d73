"""The weight formats that settings ask for. "auto" is the faster of the two formats that keep every bit."""

import functools
from pathlib import Path

from ...kernels.formats.lossless import measure_decoding
from ..config.settings import Weights
from ..machine.drive_speeds import drive_rates
from .arrange.arrange import ENCODED
from .arrange.formats import AS_IS, Rules

_BESIDES = 2.0
"""Decoding alone must be this many times faster than the drive, because cores also multiply."""


@functools.cache
def exact_format(store: Path) -> str:
    """Return "lossless" if this machine decodes faster than the drive of ``store`` delivers, else "as-is".

    Raises ConfigError if the drive cannot be measured.
    """
    drive = max(rate.bytes_per_second for rate in drive_rates(store).rates)
    return "lossless" if measure_decoding() >= _BESIDES * drive / ENCODED else AS_IS


def choose_rules(weights: Weights, store: Path) -> Rules:
    """Return the format of each part of a model, by the settings ``weights``, for a bundle in ``store``.

    Raises ConfigError if "auto" needs the speed of the store's drive and it cannot be measured.
    """
    formats: dict[str, str] = weights.model_dump(exclude={"quality"})
    given = {part: name for part, name in formats.items() if name != "auto"}
    return Rules(**{"format": given.get("format") or exact_format(store)} | given)
